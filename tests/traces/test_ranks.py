"""Several ranks: one step on all of them, and what their collectives wait for."""

from __future__ import annotations

import gzip
import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from moe_eval.errors import UsageError
from moe_eval.evaluators import kernels_record
from moe_eval.records.kernels import KernelsRecord, PhaseTime
from moe_eval.traces import breakdown, kernel_table, ranks
from moe_eval.traces.kernel_table import Trace
from moe_eval.traces.rank_tokens import tokens_of
from moe_eval.traces.readers import files
from tests.doubles import ranks_play, sql, timeline
from tests.doubles.chrome_trace import labelled, save
from tests.doubles.ranks_play import Play, generation

EXPORT = (
    Path(__file__).resolve().parents[3]
    / "shared/data/nsys/nsys2025.3.1-h100-vllm0.22.1-qwen3-30b-a3b-dummy-bf16-b8-tp2.sqlite.gz"
)
# the k-th collective of a name is one event: ns in which all are in it, and the rest of both durations
TRANSFER_AND_WAIT = """
WITH collective AS (
    SELECT start, "end", globalPid, value AS name,
        row_number() OVER (PARTITION BY globalPid, demangledName ORDER BY start) AS k
    FROM CUPTI_ACTIVITY_KIND_KERNEL JOIN StringIds ON id = demangledName
    WHERE value LIKE '%cross_device_reduce%' OR value LIKE 'nccl%'
), event AS (
    SELECT min("end") - max(start) AS transfer, sum("end" - start) AS durations FROM collective GROUP BY name, k
)
SELECT sum(transfer), sum(durations - 2 * transfer) FROM event
"""


def read(path: Path) -> KernelsRecord:
    return kernels_record.make(path.name, files.read(path), None)


def whole(record: KernelsRecord) -> tuple[float, float]:
    """Transfer, once for all ranks, and waiting of all ranks together, in ns of all steps."""
    phases = record.phases.values()
    transfer = sum(phase.collectives.transfer_ms * phase.steps for phase in phases if phase.collectives)
    return transfer * 1e6, sum(rank.wait_ms * phase.steps for phase in phases for rank in phase.ranks) * 1e6


def steps(record: KernelsRecord) -> list[tuple[str, int, dict[str, int]]]:
    return [(name, phase.steps, dict(phase.set_aside)) for name, phase in record.phases.items()]


def made(trace: Trace) -> KernelsRecord:
    return kernels_record.make("made up", trace, None)


def expected(play: Play, phase: str, value: Callable[[ranks_play.Row], float]) -> list[list[float]]:
    """Of every step of a phase the sums of a value of the rows, by rank, in ms."""
    return [
        [
            sum(value(row) for row in rows if begin <= row.start < end) / 1e6
            for rows, spans in zip(play.rows, play.steps, strict=True)
            for _, begin, end in [spans[at]]
        ]
        for at, (name, *_) in enumerate(play.steps[0])
        if name == phase
    ]


def test_transfer_and_waiting_are_those_of_plain_sql(tmp_path: Path) -> None:
    """NCCL in prefill and a custom all-reduce in decode. Rank 1 is late by gaps."""
    play = Play(gap_ns=(500, 30_000))
    for phase in ("prefill", "decode"):
        play.step(phase)
    path = play.database(tmp_path / "ranks.sqlite")
    ((transfer, wait),) = sql.ask(path, TRANSFER_AND_WAIT)
    record = read(path)
    assert steps(record) == [("prefill", 1, {}), ("decode", 1, {})]
    assert whole(record) == pytest.approx((transfer, wait))
    assert record.transfer_ms == pytest.approx(transfer / 1e6)
    waiting = record.categories["collective_wait"].time
    assert waiting == pytest.approx(wait / 1e6)
    experts, total = record.categories["expert_gemm"].time, record.total
    assert total is not None
    assert record.ceiling == pytest.approx(1 / (1 - experts / (total.time - waiting)))
    assert transfer == sum(row.transfer for row in play.rows[0])


def test_a_step_is_one_event_and_every_category_is_that_of_its_slowest_rank() -> None:
    play = generation(decode=7, expert_ns=(9000, 14_000), gap_ns=(4000, 500))
    record = made(play.trace())
    assert (record.devices, steps(record)) == (2, [("prefill", 1, {}), ("decode", 7, {})])
    decode = record.phases["decode"]
    experts = expected(play, "decode", lambda row: row.ns if row.name == timeline.MOE else 0)
    waits = expected(play, "decode", lambda row: row.wait)
    transfers = expected(play, "decode", lambda row: row.transfer)
    category = decode.categories["expert_gemm"]
    assert category.ms == pytest.approx(statistics.median(map(max, experts)))
    assert category.spread_ms == pytest.approx(statistics.median(max(step) - min(step) for step in experts))
    assert decode.categories["collective_wait"].ms == pytest.approx(statistics.median(map(max, waits)))
    assert decode.categories["collective_transfer"].ms == pytest.approx(statistics.median(map(max, transfers)))
    assert "allreduce" not in decode.categories
    assert decode.expert_imbalance == pytest.approx(
        statistics.median(max(step) / statistics.mean(step) for step in experts)
    )
    for rank, time in enumerate(decode.ranks):
        assert (time.rank, time.device) == (rank, rank)
        assert time.expert_gemm_ms == pytest.approx(statistics.median(step[rank] for step in experts))
        assert time.wait_ms == pytest.approx(statistics.median(step[rank] for step in waits))
    spans = [[begin for part in play.steps for begin in part[at][1:]] for at in range(1, 8)]
    starts = [min(row.start for rows in play.rows for row in rows if row.start >= min(span)) for span in spans]
    walls = [after - before for before, after in pairwise(starts)]
    assert decode.wall_ms == pytest.approx(statistics.median(walls) / 1e6)


def test_the_ceiling_leaves_waiting_out() -> None:
    play = generation(decode=4, expert_ns=(9000, 14_000))
    decode = made(play.trace()).phases["decode"]
    experts = expected(play, "decode", lambda row: row.ns if row.name == timeline.MOE else 0)
    works = expected(play, "decode", lambda row: row.ns - row.wait)
    slow = [max(range(2), key=lambda rank: step[rank]) for step in works]
    share = statistics.median(step[rank] for step, rank in zip(experts, slow, strict=True)) / statistics.median(
        step[rank] for step, rank in zip(works, slow, strict=True)
    )
    assert decode.ceiling.expert_gemm_share == pytest.approx(share)


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"gap_ns": (500, 60_000)}, "launch gaps"), ({"expert_ns": (9000, 40_000)}, "expert_gemm")],
)
def test_the_last_rank_is_named_with_its_reason(options: dict[str, tuple[int, int]], reason: str) -> None:
    play = generation(decode=5, **options)
    record = made(play.trace())
    for phase in record.phases.values():
        assert phase.collectives is not None
        assert (phase.collectives.matched, phase.collectives.unmatched) == (8, 0)
        first, *_ = phase.collectives.late
        assert (first.rank, next(iter(first.because))) == (1, reason)
        assert sum(first.because.values()) == pytest.approx(first.late_ms)
        assert first.because[reason] > 0.9 * first.late_ms
    waits = expected(play, "decode", lambda row: row.wait)
    late = record.phases["decode"].collectives
    assert late is not None
    # ends differ by up to 80 ns a collective
    assert late.late[0].late_ms == pytest.approx(statistics.mean(step[0] for step in waits), abs=8 * 80e-6)


@pytest.mark.parametrize("collective", [ranks_play.NCCL, ranks_play.DISPATCH])
@pytest.mark.parametrize("size", [2, 4])
def test_all_to_all_is_split_like_all_reduce_on_any_number_of_ranks(collective: str, size: int) -> None:
    play = Play(expert_ns=(9000,) * (size - 1) + (20_000,), gap_ns=(500,) * size)
    for phase in ("prefill", "decode", "decode"):
        play.step(phase, collective=collective)
    decode = made(play.trace()).phases["decode"]
    waits = expected(play, "decode", lambda row: row.wait)
    assert decode.categories["collective_wait"].ms == pytest.approx(statistics.median(map(max, waits)))
    assert decode.collectives is not None
    assert (decode.collectives.matched, len(decode.ranks)) == (8, size)


def test_rows_of_kernels_add_up_to_their_category() -> None:
    play = generation(decode=6, expert_ns=(9000, 11_000), gap_ns=(3000, 500))
    for rows in play.rows:  # experts by two kernels, of which one is longer in some steps
        rows[:] = [
            replace(row, name="triton_poi_x" if row.name == timeline.SILU and at % 3 else row.name)
            for at, row in enumerate(rows)
        ]
    for phase in made(play.trace()).phases.values():
        for name, category in phase.categories.items():
            own = [kernel for kernel in phase.functions if kernel.category == name]
            assert sum(kernel.ms for kernel in own) == pytest.approx(category.ms)
            assert sum(kernel.launches for kernel in own) == pytest.approx(category.launches)


def without(trace: Trace, rank: int, before: int = 0, after: int = 2**62) -> Trace:
    """The trace without what a rank ran before or after a time, or within both."""
    rows = trace.kernels
    keep = (rows.device != rank) | ((rows.start_ns >= before) & (rows.start_ns < after))
    return replace(trace, kernels=rows.take(keep))


def test_a_rank_that_lacks_the_first_or_the_last_steps_is_matched_by_time() -> None:
    play = generation(decode=8, gap_ns=(500, 5000))
    begin = (play.steps[1][2][1] + play.steps[1][2][2]) // 2  # within the second decode step
    end = play.steps[0][7][1]
    record = made(without(without(play.trace(), 1, before=begin), 0, after=end))
    decode = record.phases["decode"]
    assert (decode.steps, dict(decode.set_aside)) == (4, {"ragged": 4})
    assert decode.collectives is not None
    assert (decode.collectives.matched, decode.collectives.unmatched) == (8, 0)
    waits = expected(play, "decode", lambda row: row.wait)[2:6]
    assert decode.categories["collective_wait"].ms == pytest.approx(statistics.median(map(max, waits)))


def test_a_collective_that_one_rank_lacks_is_neither_transfer_nor_wait() -> None:
    play = generation(decode=6)
    trace = play.trace()
    rows = trace.kernels
    custom = np.flatnonzero((rows.name == rows.names.index(ranks_play.CUSTOM)) & (rows.device == 1))
    record = made(replace(trace, kernels=rows.take(np.delete(np.arange(len(rows)), custom[20]))))
    decode = record.phases["decode"]
    assert decode.collectives is not None
    assert (decode.steps, decode.collectives.unmatched, decode.collectives.matched) == (6, 1, 8)
    assert any("1 collectives have no partner" in note for note in record.notes)
    transfers = sum(row.transfer for row in play.rows[0] if row.name == ranks_play.CUSTOM)
    lost = [row for row in play.rows[1] if row.name == ranks_play.CUSTOM][20].transfer
    total = sum(kernel.ms for kernel in decode.functions if kernel.category == "collective_transfer")
    assert total == pytest.approx(decode.collectives.transfer_ms)
    assert decode.collectives.transfer_ms == pytest.approx((transfers - lost) / 6e6, rel=0.02)


@pytest.mark.parametrize("skew", [-9000, 9000])
def test_a_clock_that_is_a_little_off_leaves_no_collective_unmatched(skew: int) -> None:
    trace = generation(decode=6).trace()
    rows = trace.kernels
    moved = replace(rows, start_ns=rows.start_ns + np.where(rows.device == 1, skew, 0))
    for phase in made(replace(trace, kernels=moved.take(np.argsort(moved.start_ns)))).phases.values():
        assert phase.collectives is not None
        assert (phase.collectives.matched, phase.collectives.unmatched) == (8, 0)
        assert phase.collectives.transfer_ms >= 0


def test_a_process_that_only_copies_is_no_rank() -> None:
    play = generation(decode=3)
    server = timeline.trace_of([timeline.UPLOAD], start_ns=[1000], duration_ns=[9], kind=[kernel_table.COPY])
    record = made(ranks.together([server, play.trace()], ["server", "ranks"]))
    assert [rank.rank for rank in record.phases["decode"].ranks] == [0, 1]
    assert record.devices == 2


def test_ranks_that_sglang_merges_into_one_file(tmp_path: Path) -> None:
    play = generation(decode=4, gap_ns=(500, 4000))
    events = []
    for rank in (0, 1):
        document = json.loads(play.chrome(tmp_path / f"{rank}.json", rank).read_bytes())
        events += labelled(document["traceEvents"], f"[TP0{rank}] ")
    record = made(files.read(save(tmp_path / "merged.json", events)))
    assert plain(record) == plain(made(play.trace()))


def test_data_parallel_processes_are_ranks_whose_own_times_count() -> None:
    slow, fast = timeline.generation(decode=4), timeline.generation(decode=6)
    for row in slow.rows:
        row.update(duration_ns=2 * int(row["duration_ns"]), start_ns=2 * int(row["start_ns"]), device=1)
        row["launch_ns"] = int(row["start_ns"]) - 9000
        row["launch_thread"] = 8
    both = timeline.Timeline(rows=fast.rows + slow.rows).trace()
    record = made(both)
    alone = made(slow.trace())
    assert (record.devices, record.phases["prefill"].steps) == (2, 1)
    prefill = record.phases["prefill"]
    assert prefill.collectives is None
    assert [rank.device for rank in prefill.ranks] == [0, 1]
    assert prefill.total_ms == pytest.approx(alone.phases["prefill"].total_ms)
    assert prefill.wall_ms == pytest.approx(alone.phases["prefill"].wall_ms)


def test_unrelated_groups_of_ranks_do_not_match_each_other() -> None:
    """Two pairs of ranks with the same kernels, each in step with itself alone."""
    pairs = [generation(decode=6, seed=1), generation(decode=6, seed=2, gap_ns=(7000, 900))]
    traces = [pair.trace() for pair in pairs]
    for at, trace in enumerate(traces):
        traces[at] = replace(
            trace, clock_ns=0, kernels=replace(trace.kernels, start_ns=trace.kernels.start_ns + at * 150_000)
        )
    table = ranks.together(traces, ["a", "b"])
    record = made(table)
    assert (record.devices, table.notes) == (4, ())
    assert steps(record) == [("prefill", 1, {}), ("decode", 6, {})]
    wait = [
        statistics.median(step[rank] for step in expected(pair, "decode", lambda row: row.wait))
        for pair in pairs
        for rank in (0, 1)
    ]
    assert [rank.wait_ms for rank in record.phases["decode"].ranks] == pytest.approx(wait)


def test_a_rank_alone_keeps_its_collectives_and_says_so() -> None:
    play = generation(decode=3)
    trace = play.trace()
    record = made(replace(trace, kernels=trace.kernels.take(trace.kernels.device == 0)))
    assert "allreduce" in record.phases["decode"].categories
    assert record.phases["decode"].ranks == ()
    assert any("Waiting cannot be told from transfer" in note for note in record.notes)


def test_ranges_tell_the_tokens_of_every_rank() -> None:
    recorded = generation(decode=3, prompt_tokens=(512, 2048)).trace()
    phases = breakdown.make(recorded).phases
    assert [rank.tokens for rank in phases["prefill"].ranks] == [512, 2048]
    assert [rank.tokens for rank in phases["decode"].ranks] == [1, 1]
    without = replace(recorded, ranges=recorded.ranges.take(np.zeros(len(recorded.ranges), np.bool_)))
    ranks = [rank for phase in breakdown.make(without).phases.values() for rank in phase.ranks]
    assert [rank.tokens for rank in ranks] == [None] * len(ranks) != []


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("execute_context_1(512)_generation_8(8)", 520),
        ("execute_1025_context_1(sq1024sk1024)_generation_1(sq1sk7)", 1025),
        ("step[EXTEND bs=2 toks=4096]", 4096),
        ("step[DECODE bs=16]", None),
        ("decode[bs=128 tok=384 p=2 d=126]", 384),
        ("execute_new_1_cached_7", None),
        ("[Executor] _forward_step 7: 1 ctx reqs, 512 ctx tokens, 3 gen reqs", None),
    ],
)
def test_tokens_as_engines_write_them(text: str, tokens: int | None) -> None:
    assert tokens_of(text) == tokens


def test_figures_have_transfer_and_waiting() -> None:
    figures = kernels_record.figures(made(generation(decode=3).trace()))
    for name in ("collective_transfer_ms", "collective_wait_ms", "expert_imbalance"):
        assert f"decode/{name}" in figures
    assert "decode/allreduce_ms" not in figures


def plain(record: KernelsRecord) -> dict[str, PhaseTime]:
    return {name: replace(phase, collectives=None) for name, phase in record.phases.items()}


@pytest.mark.parametrize("base", [10**18, None])
def test_files_of_one_clock_are_the_ranks_of_one_trace(tmp_path: Path, base: int | None) -> None:
    play = generation(decode=5, gap_ns=(500, 4000))
    paths = [play.chrome(tmp_path / f"rank{rank}.json", rank, base=base) for rank in (0, 1)]
    table = ranks.together([files.read(path) for path in paths], [path.name for path in paths])
    assert plain(made(table)) == plain(made(play.trace()))
    assert table.notes == ()


def test_bases_of_one_host_are_added(tmp_path: Path) -> None:
    play = generation(decode=5)
    first = play.chrome(tmp_path / "0.json", 0, base=10**18)
    second = play.chrome(tmp_path / "1.json", 1, base=10**18 + 5_000_000, late=-5_000_000)
    table = ranks.together([files.read(first), files.read(second)], ["0", "1"])
    assert plain(made(table)) == plain(made(play.trace()))
    assert table.notes == ()


@pytest.mark.parametrize("late", [37_000_000_123, -90_000])
def test_clocks_that_differ_are_put_together_by_collectives(tmp_path: Path, late: int) -> None:
    play = generation(decode=9, gap_ns=(500, 4000))
    first, second = (play.chrome(tmp_path / f"{rank}.json", rank, late=rank * late) for rank in (0, 1))
    table = ranks.together([files.read(first), files.read(second)], ["0.json", "1.json"])
    assert any(
        "do not share a clock. The times of 1.json are moved so that 80 collectives" in note for note in table.notes
    )
    decode = made(table).phases["decode"]
    waits = expected(play, "decode", lambda row: row.wait)
    # the ends of a collective differ by up to 80 ns
    assert decode.categories["collective_wait"].ms == pytest.approx(statistics.median(map(max, waits)), abs=8 * 80e-6)


def test_exports_of_one_rank_each_are_put_together_though_one_lacks_a_step(tmp_path: Path) -> None:
    play = generation(decode=9, gap_ns=(500, 4000))
    begin = play.steps[1][2][1]
    play.rows[1] = [
        replace(row, start=row.start + 10**9, launch=row.launch + 10**9) for row in play.rows[1] if row.start >= begin
    ]
    play.steps[1] = [(phase, start + 10**9, end + 10**9) for phase, start, end in play.steps[1][2:]]
    paths = [play.database(tmp_path / f"rank{rank}.sqlite", [rank]) for rank in (0, 1)]
    record = made(ranks.together([files.read(path) for path in paths], ["0", "1"]))
    decode = record.phases["decode"]
    assert (decode.steps, dict(decode.set_aside)) == (8, {"ragged": 1})
    assert decode.collectives is not None
    assert (decode.collectives.matched, decode.collectives.unmatched) == (8, 0)


def test_pairs_of_ranks_in_files_without_a_clock_find_each_other(tmp_path: Path) -> None:
    pairs = [generation(decode=6, seed=1), generation(decode=6, seed=2, gap_ns=(7000, 900))]
    paths = [pair.database(tmp_path / f"{at}{rank}.sqlite", [rank]) for at, pair in enumerate(pairs) for rank in (0, 1)]
    traces = [files.read(path) for path in paths]
    for at, trace in enumerate(traces):
        rows = trace.kernels
        moved = replace(rows, start_ns=rows.start_ns + at * 10**9, launch_ns=rows.launch_ns + at * 10**9)
        marks = trace.ranges
        spans = replace(marks, start_ns=marks.start_ns + at * 10**9, end_ns=marks.end_ns + at * 10**9)
        traces[at] = replace(trace, kernels=moved, ranges=spans)
    record = made(ranks.together(traces, ["a", "b", "c", "d"]))
    assert steps(record) == [("prefill", 1, {}), ("decode", 6, {})]
    for phase in record.phases.values():
        assert phase.collectives is not None
        assert (phase.collectives.matched, phase.collectives.unmatched) == (16, 0)
    sentences = [note.partition(".")[0] for note in record.notes if "clock" in note]
    assert sentences == [
        "b and a do not share a clock",
        "c and a do not share a clock, and no collectives in both relate their times",
        "d and c do not share a clock",
    ]


def test_torch_names_communicators_places_and_sizes(tmp_path: Path) -> None:
    play = generation(decode=4)
    paths = [play.chrome(tmp_path / f"{rank}.json", rank, group="7") for rank in (0, 1)]
    traces = [files.read(path) for path in paths]
    decode = made(ranks.together(traces, ["0", "1"])).phases["decode"]
    assert decode.collectives is not None
    assert decode.collectives.message_bytes == 8 * 2 * ranks_play.MESSAGE
    copies = [files.keep(path, tmp_path, f"copy{at}") for at, path in enumerate(paths)]
    again = ranks.together([files.read(path) for path in copies], ["0", "1"])
    assert made(again).phases["decode"] == decode
    # a number tells which is which where times do not
    shifted = replace(traces[1], kernels=replace(traces[1].kernels, start_ns=traces[1].kernels.start_ns + 3_000_000))
    numbers = ranks.together([traces[0], replace(shifted, clock_ns=traces[0].clock_ns)], ["0", "1"])
    assert sum(phase.collectives.unmatched for phase in made(numbers).phases.values() if phase.collectives) == 0


def test_a_summary_is_no_rank() -> None:
    trace = timeline.trace_of([timeline.MOE], start_ns=[0], duration_ns=[9], timed=False)
    with pytest.raises(UsageError, match="summary without times"):
        ranks.together([trace, trace], ["a.csv", "b.csv"])


def test_ids_of_files_do_not_mix() -> None:
    """Two files with the same process, device, thread and correlation ids are two ranks."""
    first, second = timeline.generation(decode=2), timeline.generation(decode=2)
    table = ranks.together([first.trace(), second.trace()], ["a", "b"])
    assert len(np.unique(table.kernels.process)) == 2
    assert len(np.unique(table.kernels.launch_thread)) == 2
    assert breakdown.make(table).devices == 2


@pytest.mark.skipif(
    not EXPORT.is_file(), reason="shared data absent: the export of two GPUs is not beside the checkout"
)
def test_a_real_export_of_two_gpus(tmp_path: Path) -> None:
    path = tmp_path / "tp2.sqlite"
    path.write_bytes(gzip.decompress(EXPORT.read_bytes()))
    ((transfer, _),) = sql.ask(path, TRANSFER_AND_WAIT)
    assert 14e6 < transfer < 15e6
    trace = files.read(path)
    record = made(trace)
    assert steps(record) == [("prefill", 1, {}), ("mixed", 1, {}), ("decode", 15, {"far from the others": 1})]
    assert record.transfer_ms == pytest.approx(transfer / 1e6)
    assert record.phases["decode"].wall_ms == pytest.approx(8.143, abs=0.01)
    first = record.phases["prefill"].collectives
    assert first is not None
    assert (first.late[0].rank, next(iter(first.late[0].because))) == (1, "launch gaps")
