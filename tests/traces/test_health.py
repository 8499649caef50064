"""Faults of captures: each is named, and takes the figures along that it spoils."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moe_eval.records.kernels import CaptureFault, CaptureWarning, PhaseTime
from moe_eval.traces import breakdown, health
from moe_eval.traces.kernel_table import Launches, Trace
from moe_eval.traces.readers import files
from tests.doubles import chrome_trace, nsys_database, timeline
from tests.doubles.chrome_trace import Event, call, kernel
from tests.doubles.sql import ask, change
from tests.doubles.timeline import generation, trace_of

BUSY = {"busy_ms", "overlap_ms", "span_ms", "idle_ms", "gap_ms", "ceiling", "wall_ceiling"}
WALL = {"span_ms", "wall_ms", "idle_ms", "gap_ms", "wall_ceiling"}
SHARED = Path(__file__).resolve().parents[3] / "shared"


def checked(
    trace: Trace, unprofiled_ms: Sequence[float] = (), profiled_ms: float | None = None
) -> tuple[dict[str, PhaseTime], tuple[CaptureWarning, ...]]:
    phases, warnings = health.check(trace, breakdown.make(trace), unprofiled_ms, profiled_ms)
    for name, phase in phases.items():
        withheld = {field for warning in warnings if warning.phase in (None, name) for field in warning.withheld}
        assert withheld <= {field for field in vars(phase) if getattr(phase, field) is None}
    return phases, warnings


def faults(trace: Trace) -> list[CaptureFault]:
    return [warning.fault for warning in checked(trace)[1]]


# launches without kernels, kernels without a launch


def graph_launches(replayed: Sequence[bool], *, sampled: bool = True) -> list[Event]:
    """Launches of a graph of three kernels, some without them, and a sampling kernel at the end."""
    events = []
    for at, has_kernels in enumerate(replayed):
        begin = 1000.0 + 100 * at
        events.append(call("cudaGraphLaunch", ts=begin - 50, args={"correlation": at}))
        events += [
            kernel(name, ts=begin + 20 * place, dur=10.0, args={"correlation": at, "graph node id": place + 1})
            for place, name in enumerate((timeline.FLASH, timeline.TOPK, timeline.MOE))
            if has_kernels
        ]
    if sampled:
        last = 1000.0 + 100 * len(replayed)
        events += [
            call(ts=last - 9, args={"correlation": 999}),
            kernel(timeline.ARGMAX, ts=last, args={"correlation": 999}),
        ]
    return events


@pytest.mark.parametrize(
    ("replayed", "sampled", "missing"),
    [
        ([True] + [False] * 9, True, 9),  # the kind
        ([True] + [False] * 9, False, 9),  # nothing runs after it
        ([False] * 10, True, 10),
        ([False, *[True] * 9], True, 1),
        ([True, False] * 5, True, 5),
        ([True] * 10, True, 0),
        ([True] * 8 + [False] * 2, False, 0),  # in flight as the recording ends
    ],
)
def test_graph_launches_without_kernels_are_counted(
    replayed: list[bool], sampled: bool, missing: int, tmp_path: Path
) -> None:
    source = chrome_trace.save(tmp_path / "trace.json", graph_launches(replayed, sampled=sampled))
    phases, warnings = checked(files.read(source))
    if not missing:
        assert warnings == ()
        assert all(phase.busy_ms for phase in phases.values())
        return
    (warning,) = warnings
    assert warning.fault is CaptureFault.GRAPHS_WITHOUT_KERNELS
    assert warning.sentence.startswith(f"{missing} of 10 launches of CUDA graphs")
    assert set(warning.withheld) == BUSY
    assert checked(files.read(files.keep(source, tmp_path, "kept"))) == (phases, warnings)


def test_few_graphs_without_kernels_are_named_and_spoil_no_median(tmp_path: Path) -> None:
    replayed = [at != 100 for at in range(200)]
    phases, (warning,) = checked(files.read(chrome_trace.save(tmp_path / "t.json", graph_launches(replayed))))
    assert (warning.sentence[:8], warning.withheld) == ("1 of 200", ())
    assert all(phase.busy_ms and phase.ceiling for phase in phases.values())


def test_launches_into_a_graph_that_is_captured_are_not_missing(tmp_path: Path) -> None:
    captured = [
        call(name, ts=10.0 + at, args={"correlation": 5000 + at})
        for at, name in enumerate(
            [
                "cudaLaunchKernel",
                "cudaStreamEndCapture",
                "cudaStreamBeginCapture",
                "cuLaunchKernelEx",
                "cudaStreamEndCapture_v10000",
                "cudaEventRecord",
            ]
        )
    ]
    healthy = graph_launches([True] * 4)
    assert faults(files.read(chrome_trace.save(tmp_path / "a.json", [*captured, *healthy]))) == []
    outside = call("cudaLaunchKernelExC", ts=20.0, args={"correlation": 6000})
    assert faults(files.read(chrome_trace.save(tmp_path / "b.json", [*captured, outside, *healthy]))) == [
        CaptureFault.LAUNCHES_MISSING
    ]


def test_an_export_tells_graphs_and_launches_that_lost_their_kernels(tmp_path: Path) -> None:
    source = tmp_path / "export.sqlite"
    nsys_database.write(source, steps=6)
    assert faults(files.read(source)) == []
    kernels, calls = "CUPTI_ACTIVITY_KIND_KERNEL", "CUPTI_ACTIVITY_KIND_RUNTIME"
    named = f"SELECT correlationId FROM {calls} JOIN StringIds ON id = nameId WHERE value LIKE"
    change(source, f"DELETE FROM {kernels} WHERE correlationId IN ({named} 'cudaGraphLaunch%' LIMIT 4)")
    ((lost, total),) = ask(
        source,
        "SELECT sum((correlationId, globalTid / 16777216) NOT IN "
        f"(SELECT correlationId, globalPid / 16777216 FROM {kernels})), count(*) "
        f"FROM {calls} JOIN StringIds ON id = nameId WHERE value LIKE '%GraphLaunch%'",
    )
    phases, (warning,) = checked(files.read(source))
    assert 0 < lost < total
    assert warning.sentence.startswith(f"{lost} of {total} launches of CUDA graphs")
    assert checked(files.read(files.keep(source, tmp_path, "kept"))) == (phases, (warning,))
    # the prefill's third kernel on both ranks
    change(
        source, f"DELETE FROM {kernels} WHERE correlationId = (SELECT min(correlationId) + 2 FROM ({named} '%ExC%'))"
    )
    assert "2 of " in checked(files.read(source))[1][1].sentence
    assert faults(files.read(source)) == [CaptureFault.GRAPHS_WITHOUT_KERNELS, CaptureFault.LAUNCHES_MISSING]


def test_a_rank_s_lost_kernels_are_not_those_of_another_with_the_same_ids(tmp_path: Path) -> None:
    whole, lossy = (
        chrome_trace.labelled(graph_launches(parts), label)
        for parts, label in (
            ([True] * 5, "[TP00] "),
            ([True, False, False, True, True], "[TP01] "),
        )
    )
    _, (warning,) = checked(files.read(chrome_trace.save(tmp_path / "merged.json", whole + lossy)))
    assert warning.sentence.startswith("2 of 10 launches of CUDA graphs")


def launched(present: Sequence[tuple[bool, bool]]) -> list[Event]:
    """Launches and kernels one by one: whether the call and whether the kernel is in the trace."""
    events = []
    for at, (has_call, has_kernel) in enumerate(present):
        args = {"correlation": at}
        events += [call(ts=1000.0 + 20 * at, args=args)] * has_call
        events += [kernel(timeline.NORM, ts=5000.0 + 20 * at, args=args)] * has_kernel
    return events


@pytest.mark.parametrize(
    ("present", "kernels", "launches"),
    [
        ([(True, True)] * 20, 0, 0),
        ([(False, True)] * 5 + [(True, True)] * 10 + [(True, False)] * 15, 0, 0),  # a second of a longer recording
        ([(True, True)] * 5 + [(False, True)] * 2 + [(True, True)] * 13, 2, 0),
        ([(True, True)] * 5 + [(True, False)] * 3 + [(True, True)] * 12, 0, 3),
        ([(True, True), (False, True), (True, False), (True, True)], 1, 1),
    ],
)
def test_events_that_were_dropped_are_told_from_the_edges(
    present: list[tuple[bool, bool]], kernels: int, launches: int, tmp_path: Path
) -> None:
    source = chrome_trace.save(tmp_path / "trace.json", launched(present))
    phases, warnings = checked(files.read(source))
    assert checked(files.read(files.keep(source, tmp_path, "kept"))) == (phases, warnings)
    assert len(warnings) == bool(kernels or launches)
    for warning in warnings:
        assert warning.fault is CaptureFault.LAUNCHES_MISSING
        assert (f"{kernels} of {sum(has for _, has in present)} kernels" in warning.sentence) == bool(kernels)
        assert (f"{launches} of 20 launches" in warning.sentence) == (launches == 3)
        assert set(warning.withheld) == (BUSY if launches else set())


def test_kernels_that_cannot_be_joined_are_not_called_absent() -> None:
    trace = generation(graph=True).trace()
    rows = trace.kernels
    decode = rows.replayed & (rows.launch_ns != rows.launch_ns.min())
    kernels = replace(rows, launch_ns=np.where(decode, -1, rows.launch_ns))
    lost = Launches(np.array([5, 6]), np.array([7, 7]), np.array([True, True]))
    assert faults(replace(trace, kernels=kernels, unanswered=lost)) == [CaptureFault.LAUNCHES_MISSING]


# kernels that are too long for their stream


def streamed(rows: Sequence[tuple[int, int, int, int]]) -> Trace:
    """Kernels of a start, a duration, a stream and a graph's launch, 0 for none."""
    start, duration, stream, graph = (list(column) for column in zip(*rows, strict=True))
    return trace_of(
        [timeline.MOE] * len(rows),
        start_ns=start,
        duration_ns=duration,
        stream=stream,
        correlation=graph,
        replayed=[launch > 0 for launch in graph],
    )


def excess_ns(rows: Sequence[tuple[int, int, int, int]]) -> int:
    """By which kernels end after the first end among those that start later on their stream, in other launches."""
    total = 0
    for at, (start, duration, stream, graph) in enumerate(rows):
        later = [
            begin + length
            for begin, length, other, launch in rows[at + 1 :]
            if other == stream and not (launch and launch == graph)
        ]
        late = start + duration - min(later, default=start + duration)
        total += late if late > health.CLOCK_TICK_NS else 0
    return total


@pytest.mark.parametrize("seed", range(30))
def test_a_kernel_that_outlasts_later_ones_of_its_stream_is_found(seed: int) -> None:
    """Against every pair of kernels."""
    choose = random.Random(seed)
    rows, clock = [], 0
    for launch in range(1, 40):
        in_graph = choose.random() < 0.5
        for _ in range(choose.randint(1, 4)):
            stream = choose.randint(0, 1)
            long = choose.random() < 0.02
            rows.append((clock, choose.randint(900_000, 5_000_000) if long else 9000, stream, launch * in_graph))
            clock += choose.randint(6000, 15_000)  # as programmatic dependent launch overlaps
    excess, total = excess_ns(rows), sum(duration for _, duration, _, _ in rows)
    _, warnings = checked(streamed(rows))
    assert [warning.fault for warning in warnings] == [CaptureFault.LONGER_THAN_STREAM] * (excess > 0.01 * total)
    for warning in warnings:
        assert f"by {excess / 1e6:.3f} ms in all" in warning.sentence
        assert set(warning.withheld) == BUSY


@pytest.mark.parametrize(
    "rows",
    [
        [(0, 12_000, 0, 0), (8000, 9000, 0, 0), (15_000, 9000, 0, 0)],  # dependent launches
        [(0, 90_000, 0, 0), (8000, 9000, 1, 0), (95_000, 9000, 0, 0)],  # streams of their own
        [(0, 90_000, 0, 3), (8000, 9000, 0, 3), (95_000, 9000, 0, 4)],  # branches of a graph
        [(0, 10_900, 0, 0), (4000, 6000, 0, 0)],  # a tick of the clock
        [(0, 10_000, 0, 0), (0, 9990, 0, 0)] + [(11_000 * at, 10_000, 0, 0) for at in range(1, 9)],
    ],
)
def test_overlaps_that_gpus_make_are_no_fault(rows: list[tuple[int, int, int, int]]) -> None:
    assert faults(streamed(rows)) == []


# the MoE block


@pytest.mark.parametrize(
    ("unknown_us", "with_experts", "withheld"),
    [(0.0, True, None), (0.1, True, None), (0.5, True, False), (40.0, True, True), (40.0, False, True)],
)
def test_unknown_kernels_in_the_moe_block_withhold_its_ceiling(
    unknown_us: float, with_experts: bool, withheld: bool | None
) -> None:
    """A block of 1 us of routing, 18 us of expert GEMMs if they are known, and 1 us of finalise."""
    recording = timeline.Timeline()
    for _ in range(4):
        recording.run("norm", timeline.NORM, 3000)
        recording.run("other", "outside_of_the_block", 50_000)
        recording.run("attention", timeline.FLASH, 4000)
        recording.run("other", "before_the_router", 50_000)
        recording.run("routing_permute", timeline.TOPK, 1000)
        if with_experts:
            recording.run("expert_gemm", timeline.MOE, 18_000)
        recording.run("other", "unheard_of", int(1000 * unknown_us))
        recording.run("routing_permute", "void tensorrt_llm::kernels::finalizeMoeRoutingKernel<half>", 1000)
    share = unknown_us / (2 + 18 * with_experts + unknown_us)
    phases, warnings = checked(recording.trace())
    assert len(warnings) == (withheld is not None)
    for warning in warnings:
        assert warning.fault is CaptureFault.UNCLASSIFIED_IN_MOE
        assert f"{100 * share:.1f} %" in warning.sentence
        assert "unheard_of" in warning.sentence
        assert warning.phase in phases
        assert set(warning.withheld) == ({"ceiling", "wall_ceiling"} if withheld else set())
    assert all(phase.busy_ms for phase in phases.values())


def test_unknown_kernels_right_after_experts_without_a_finalise_count() -> None:
    recording = timeline.Timeline()
    for _ in range(3):
        recording.run("attention", timeline.FLASH, 4000)
        recording.run("routing_permute", timeline.TOPK, 1000)
        recording.run("other", "grouped", 9000)
        recording.run("other", "combined", 9000)
        recording.run("norm", timeline.NORM, 3000)
        recording.run("other", "elsewhere", 9000)
    (warning,) = checked(recording.trace())[1]
    assert f"{100 * 18 / 19:.1f} %" in warning.sentence


# the run without the profiler


@pytest.mark.parametrize(("profiled", "withheld"), [(100.0, False), (109.0, False), (111.0, True), (250.0, True)])
def test_a_profiler_that_costs_much_withholds_wall_figures(profiled: float, withheld: bool) -> None:
    trace = generation().trace()
    phases, warnings = checked(trace, (99.0, 100.0, 300.0), profiled)
    assert [warning.fault for warning in warnings] == [CaptureFault.PROFILER_OVERHEAD] * withheld
    before = breakdown.make(trace).phases
    for name, phase in phases.items():
        changed = {field for field in vars(phase) if getattr(phase, field) != getattr(before[name], field)}
        assert changed <= (WALL if withheld else set())
    assert all(set(warning.withheld) == WALL for warning in warnings)


def test_idle_time_beyond_the_unprofiled_run_is_the_profiler_s() -> None:
    """Four kernels of 1 ms with 1 ms between them: 4 ms busy and 3 ms idle."""
    trace = streamed([(2_000_000 * at, 1_000_000, 0, 0) for at in range(4)])
    for plain, is_made in ((7.0, False), (6.9, False), (6.6, True), (5.0, True), (3.0, True)):
        phases, warnings = checked(trace, (plain - 0.5, plain), plain)
        assert [warning.fault for warning in warnings] == [CaptureFault.PROFILER_IDLE] * is_made
        (phase,) = phases.values()
        assert (phase.busy_ms, phase.idle_ms) == (4.0, None if is_made else 3.0)
        for warning in warnings:
            assert f"at most {max(0.0, plain - 4):.3f} ms" in warning.sentence
            assert set(warning.withheld) == WALL


def test_a_sound_capture_and_a_summary_have_no_warning(tmp_path: Path) -> None:
    chrome_trace.write(tmp_path / "trace.json", steps=5)
    assert faults(files.read(tmp_path / "trace.json")) == []
    assert faults(generation(graph=True).trace()) == []
    assert faults(trace_of(["unheard_of"], start_ns=[0], duration_ns=[9], timed=False)) == []


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared cases are not beside the checkout")
def test_the_given_cases_are_named() -> None:
    cases = SHARED / "cases" / "kernels"
    assert faults(files.read(cases / "03_duration_over_next.json")) == [CaptureFault.LONGER_THAN_STREAM]
    assert faults(files.read(cases / "04_graph_launches_without_kernels.json")) == [CaptureFault.GRAPHS_WITHOUT_KERNELS]
    for name in sorted((SHARED / "data" / "traces").glob("*random*")):
        assert faults(files.read(name)) == []
