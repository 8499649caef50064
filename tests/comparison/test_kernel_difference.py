"""The difference of two traces, and what is said of it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moe_eval.traces.figures import Breakdown

from moe_eval.comparison import kernel_difference
from moe_eval.traces import breakdown
from tests.doubles import timeline
from tests.doubles.timeline import Timeline, generation


@pytest.fixture(scope="module")
def both() -> tuple[Breakdown, Breakdown]:
    return breakdown.make(generation(graph=True).trace()), breakdown.make(generation(graph=True, fp8=True).trace())


def test_the_difference_names_what_quantisation_costs_and_what_the_experts_gain(
    both: tuple[Breakdown, Breakdown],
) -> None:
    prefill, decode = kernel_difference.make(*both)
    assert (prefill.name, decode.name) == ("prefill", "decode")
    change = {each.category: each.change_ms for each in decode.changes}
    # three layers, two GEMMs each: 4 us less, and a quantisation of 0.6 us before each
    assert change["expert_gemm"] == pytest.approx(-3 * 2 * 4e-3)
    assert change["quant_dequant"] == pytest.approx(3 * 2 * 0.6e-3)
    assert decode.kernel_ms == pytest.approx(sum(change.values())) == pytest.approx(-3 * 2 * 3.4e-3)
    assert {category for category, ms in change.items() if abs(ms) > 1e-12} == {"expert_gemm", "quant_dequant"}
    assert [each.name for each in decode.new] == [timeline.QUANT]
    assert decode.vanished == ()
    # one more gap before each of the six new kernels
    assert decode.waiting_ms == pytest.approx(6 * timeline.GAP_NS / 1e6)
    assert decode.residual_ms == pytest.approx(0)
    assert decode.step_ms is not None
    assert decode.step_ms[1] - decode.step_ms[0] == pytest.approx(decode.kernel_ms + (decode.waiting_ms or 0))
    # nine against five microseconds a GEMM: 1.8 times, of the part of the step that is theirs
    share = 6 * 9e-3 / decode.busy_ms[0] if decode.busy_ms else 0
    assert decode.gemm_ratio == pytest.approx(1.8)
    assert decode.ceiling is not None
    assert decode.ceiling[0] == pytest.approx(1 / (1 - share + share / 1.8))
    text = kernel_difference.explain(decode, ("bf16", "fp8"), 1.01)
    for part in ("0.024 ms less", "quant_dequant +0.004 ms", "(+6 launches)", "measured without it: 1.010x"):
        assert part in text
    assert f"{decode.busy_ratio:.3f}x" in text


def test_the_difference_of_a_trace_with_itself_is_nothing(both: tuple[Breakdown, Breakdown]) -> None:
    for phase in kernel_difference.make(both[0], both[0]):
        assert all(each.change_ms == 0 for each in phase.changes)
        assert (phase.kernel_ms, phase.waiting_ms, phase.residual_ms, phase.overlap_ms) == (0, 0, 0, 0)
        assert (phase.new, phase.vanished, phase.busy_ratio, phase.step_ratio) == ((), (), 1, 1)


@settings(max_examples=40)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5000)), min_size=2, max_size=6))
def test_swapping_negates_and_the_parts_add_up_to_the_step(steps: list[tuple[bool, int]]) -> None:
    made = []
    for fp8 in (False, True):
        one = Timeline()
        one.step("prefill", 512)
        for wide, wait in steps:
            one.step("decode", 1, fp8=fp8, split_k=wide)
            one.now += wait * (2 if fp8 else 1)
        made.append(breakdown.make(one.trace()))
    there, back = kernel_difference.make(made[0], made[1]), kernel_difference.make(made[1], made[0])
    for one_way, other in zip(there, back, strict=True):
        for a, b in zip(one_way.changes, other.changes, strict=True):
            assert (a.category, a.change_ms) == (b.category, -b.change_ms)
        assert one_way.kernel_ms == pytest.approx(-other.kernel_ms)
        assert one_way.waiting_ms == pytest.approx(-(other.waiting_ms or 0))
        assert one_way.residual_ms == pytest.approx(-(other.residual_ms or 0))
        assert (one_way.new, one_way.vanished) == (other.vanished, other.new)
        assert one_way.step_ms is not None
        parts = one_way.kernel_ms - (one_way.overlap_ms or 0) + (one_way.waiting_ms or 0) + (one_way.residual_ms or 0)
        assert parts == pytest.approx(one_way.step_ms[1] - one_way.step_ms[0])


def test_a_residual_is_shown_and_not_hidden() -> None:
    one, two = Timeline(), Timeline()
    for made, kinds in ((one, [(3, 0), (0, 3), (0, 0)]), (two, [(0, 0)] * 3)):
        for norm, attention in kinds:
            made.run("norm", timeline.NORM, 1_000_000 * (1 + norm))
            made.run("attention", timeline.FLASH, 1_000_000 * (1 + attention))
            made.run("expert_gemm", timeline.MOE, 1_000_000)
            made.run("sampling", timeline.ARGMAX, 1000)
            made.now += 1000
    (found,) = kernel_difference.make(breakdown.make(two.trace()), breakdown.make(one.trace()))
    assert found.kernel_ms == pytest.approx(0)  # no category's median has moved, and yet most steps are longer
    assert found.residual_ms == pytest.approx(3, rel=0.01)
    assert "left unexplained" in kernel_difference.explain(found, ("a", "b"))
