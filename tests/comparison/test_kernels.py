"""The difference of two traces, and the paragraph about it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_eval.comparison import kernels, traced
from moe_eval.data.workload import Shape
from moe_eval.evaluators import kernels_record
from moe_eval.records.kernels import KernelsRecord
from moe_eval.records.shape_comparison import PhaseChange
from moe_eval.traces.kernel_table import Launches
from tests.doubles import ranks_play, timeline
from tests.doubles.timeline import Timeline, generation

NAMES = ("bf16", "fp8")


def record(recording: Timeline) -> KernelsRecord:
    return kernels_record.make("made up", recording.trace(), None)


def changes(before: KernelsRecord, after: KernelsRecord, ratio: float | None = None) -> dict[str, PhaseChange]:
    return kernels.changes(before, after, NAMES, {"decode": ratio})


@pytest.fixture(scope="module")
def both() -> tuple[KernelsRecord, KernelsRecord]:
    return record(generation(graph=True)), record(generation(graph=True, fp8=True))


def test_the_difference_names_what_quantisation_costs_and_what_the_experts_gain(
    both: tuple[KernelsRecord, KernelsRecord],
) -> None:
    by_phase = changes(*both, 1.01)
    assert list(by_phase) == ["prefill", "decode"]
    decode = by_phase["decode"]
    change = {name: category.change_ms for name, category in decode.categories.items()}
    # three layers, two GEMMs each: 4 us less, and a quantisation of 0.6 us before each
    assert change["expert_gemm"] == pytest.approx(-3 * 2 * 4e-3)
    assert change["quant_dequant"] == pytest.approx(3 * 2 * 0.6e-3)
    assert decode.kernel_change_ms == pytest.approx(sum(change.values())) == pytest.approx(-3 * 2 * 3.4e-3)
    assert {category for category, ms in change.items() if abs(ms) > 1e-12} == {"expert_gemm", "quant_dequant"}
    assert [kernel.name for kernel in decode.new] == [timeline.QUANT]
    assert decode.vanished == ()
    # one more gap before each of the six new kernels
    assert decode.waiting_change_ms == pytest.approx(6 * timeline.GAP_NS / 1e6)
    assert decode.residual_ms == pytest.approx(0)
    assert decode.step_ms is not None
    step_change = decode.step_ms[1] - decode.step_ms[0]
    assert step_change == pytest.approx(decode.kernel_change_ms + (decode.waiting_change_ms or 0))
    # nine against five microseconds a GEMM: 1.8 times, of the part of the step that is theirs
    share = 6 * 9e-3 / decode.busy_ms[0] if decode.busy_ms else 0
    assert decode.expert_gemm_ratio == pytest.approx(1.8)
    assert decode.ceiling_busy == pytest.approx(1 / (1 - share + share / 1.8))
    for part in (
        "0.024 ms less",
        "quant_dequant +0.004 ms",
        "(+6 launches)",
        "measured without it is 1.010x. The kernels explain it.",
    ):
        assert part in decode.text
    assert f"{decode.predicted_ratio_busy:.3f}x" in decode.text


def test_the_difference_of_a_trace_with_itself_is_nothing(both: tuple[KernelsRecord, KernelsRecord]) -> None:
    for phase in changes(both[0], both[0]).values():
        assert all(category.change_ms == 0 for category in phase.categories.values())
        parts = (phase.kernel_change_ms, phase.waiting_change_ms, phase.residual_ms, phase.overlap_change_ms)
        assert parts == (0, 0, 0, 0)
        ratios = (phase.predicted_ratio_busy, phase.predicted_ratio_step)
        assert (phase.new, phase.vanished, ratios) == ((), (), (1, 1))


@settings(max_examples=40)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5000)), min_size=2, max_size=6))
def test_swapping_negates_and_the_parts_add_up_to_the_step(steps: list[tuple[bool, int]]) -> None:
    records = []
    for fp8 in (False, True):
        recording = Timeline()
        recording.step("prefill", 512)
        for wide, wait in steps:
            recording.step("decode", 1, fp8=fp8, split_k=wide)
            recording.clock_ns += wait * (2 if fp8 else 1)
        records.append(record(recording))
    forward_changes, backward_changes = changes(records[0], records[1]), changes(records[1], records[0])
    assert list(forward_changes) == list(backward_changes)
    for forward, backward in zip(forward_changes.values(), backward_changes.values(), strict=True):
        assert list(forward.categories) == list(backward.categories)
        for name, category in forward.categories.items():
            assert category.change_ms == -backward.categories[name].change_ms
        assert forward.kernel_change_ms == pytest.approx(-backward.kernel_change_ms)
        assert forward.waiting_change_ms == pytest.approx(-(backward.waiting_change_ms or 0))
        assert forward.residual_ms == pytest.approx(-(backward.residual_ms or 0))
        assert (forward.new, forward.vanished) == (backward.vanished, backward.new)
        assert forward.step_ms is not None
        parts = forward.kernel_change_ms - (forward.overlap_change_ms or 0)
        parts += (forward.waiting_change_ms or 0) + (forward.residual_ms or 0)
        assert parts == pytest.approx(forward.step_ms[1] - forward.step_ms[0])


def test_a_residual_is_shown_and_not_hidden() -> None:
    records = []
    for kinds in ([(0, 0)] * 3, [(3, 0), (0, 3), (0, 0)]):
        recording = Timeline()
        for norm, attention in kinds:
            recording.run("norm", timeline.NORM, 1_000_000 * (1 + norm))
            recording.run("attention", timeline.FLASH, 1_000_000 * (1 + attention))
            recording.run("expert_gemm", timeline.MOE, 1_000_000)
            recording.run("sampling", timeline.ARGMAX, 1000)
            recording.clock_ns += 1000
        records.append(record(recording))
    (change,) = changes(records[0], records[1]).values()
    assert change.kernel_change_ms == pytest.approx(0)  # no category's median has moved, and yet most steps are longer
    assert change.residual_ms == pytest.approx(3, rel=0.01)
    assert "left unexplained" in change.text


def test_waiting_for_other_ranks_is_neither_a_kernel_s_work_nor_a_gap() -> None:
    even, uneven = (
        kernels_record.make("made up", ranks_play.generation(decode=5, expert_ns=experts).trace(), None)
        for experts in ((9000, 9000), (9000, 19_000))
    )
    change = changes(even, uneven)["decode"]
    waiting = change.categories["collective_wait"]
    assert waiting.change_ms == pytest.approx(4 * 2 * 10_000 / 1e6, rel=0.05)
    assert f"Waiting for other ranks grows by {waiting.change_ms:.3f} ms" in change.text
    assert f"waiting for other ranks cost {waiting.change_ms:.3f} ms more" in change.text
    assert list(change.categories).index("collective_wait") < list(change.categories).index("sampling")


FUNCTION = "void split_embedding_codegen_forward_unweighted_kernel_of_a_name_that_goes_on_1"
LONG = "void cutlass::device_kernel<" + "k" * 1500
SAME = {
    "another size": (f"{FUNCTION}<float, 2ul>(int)", f"{FUNCTION}<float, 5ul>(int)"),
    "sizes of a tile": ("void f<C<128>, C<64>, 8u, int>(int*)", "void f<C<256>, C<128>, 16u, int>(int*)"),
    "cut by the profiler": (f"{FUNCTION[:50]}...", f"{FUNCTION}<float, 2ul>(int)"),
    "cut in both": (f"{FUNCTION[:50]}...", f"{FUNCTION[:60]}..."),
    "longer than a record holds": (f"{LONG}<a>", f"{LONG}<b>"),
}
OTHERS = {
    "another type": (f"{FUNCTION}<float, 2ul>(int)", f"{FUNCTION}<c10::Half, 2ul>(int)"),
    "another enumerator": ("void quantize<(Type)0, 8>(int)", "void quantize<(Type)1, 8>(int)"),
    "another tile in its name": ("nvjet_tst_32x8_64x16_4x1_v_bz_TNT", "nvjet_tst_128x8_64x16_4x1_v_bz_TNT"),
    "a longer name": ("my_kernel", "my_kernel_v2"),
}


@pytest.mark.parametrize("name", [*SAME, *OTHERS])
def test_a_kernel_is_new_only_if_its_name_is(name: str) -> None:
    names = (SAME | OTHERS)[name]
    records = []
    for text in names:
        recording = generation(decode=2)
        recording.run("other", text, 1_000_000)
        records.append(record(recording))
    for pair in (records, list(map(kernels_record.shortened, records))):
        change = changes(*pair)["decode"]
        single = [[kernel.name for kernel in side] for side in (change.vanished, change.new)]
        assert single == ([[], []] if name in SAME else [[text] for text in names])


def test_a_timed_shape_finds_its_trace() -> None:
    assert traced.sizes("b8_i512_o256") == Shape(8, 512, 256)
    assert traced.sizes("b8_i512") is None
    assert traced.matching("b8_i512_o9", ["b8_i512_o5", "b8_i512_o9"]) == "b8_i512_o9"
    assert traced.matching("b8_i512_o256", ["b1_i512_o9", "b8_i512_o9"]) == "b8_i512_o9"
    assert traced.matching("b8_i512_o256", ["b8_i512_o5", "b8_i512_o9"]) is None
    assert traced.matching("whole", ["b8_i512_o5"]) is None


def test_steps_that_a_slow_profiler_spoils_leave_the_prediction_of_the_kernels(
    both: tuple[KernelsRecord, KernelsRecord],
) -> None:
    slow = kernels_record.make(
        "made up", generation(graph=True, fp8=True).trace(), None, unprofiled_ms=[1.0], profiled_ms=2.0
    )
    whole, decode = (changes(both[0], after, 1.01)["decode"] for after in (both[1], slow))
    assert (decode.step_ms, decode.predicted_ratio_step, decode.idle_share) == (None, None, None)
    assert decode.predicted_ratio_busy == whole.predicted_ratio_busy
    assert f"Under the profiler kernels alone predict {whole.predicted_ratio_busy:.3f}x." in decode.text
    assert decode.text.endswith("The ratio measured without it is 1.010x.")  # waiting may explain it
    near = changes(both[0], slow, 1.2)["decode"]
    assert near.text.endswith("The kernels explain it.")


def test_a_spoiled_capture_has_no_ceiling(both: tuple[KernelsRecord, KernelsRecord]) -> None:
    lost = Launches(np.array([1, 2]), np.array([7, 7]), np.array([True, True]))
    spoiled = kernels_record.make("made up", replace(generation(graph=True).trace(), unanswered=lost), None)
    assert "decode/ceiling" in kernels_record.figures(both[0])
    assert not {"decode/ceiling", "decode/busy_ms", "decode/idle_ms"} & kernels_record.figures(spoiled).keys()
    decode = changes(spoiled, both[1], 1.5)["decode"]
    assert (decode.ceiling_busy, decode.ceiling_wall, decode.predicted_ratio_busy) == (None, None, None)
    assert decode.text.endswith("Times are missing or withheld.")
