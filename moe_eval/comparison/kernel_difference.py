"""What changed between two traces, by function: names of GEMMs differ between precisions, categories do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moe_eval.traces.cuts import WHOLE
from moe_eval.traces.figures import Breakdown, Function, Phase
from moe_eval.traces.taxonomy import CATEGORIES

_NAMED = 10
_GEMMS = ("expert_gemm", "dense_gemm", "gate_gemm")
_SMALL = 0.005  # changes under this part of the step are not worth a word


@dataclass(frozen=True)
class Change:
    """A category in ms per step; `change_ms` is after minus before."""

    category: str
    before_ms: float
    after_ms: float
    before_launches: float
    after_launches: float

    @property
    def change_ms(self) -> float:
        return self.after_ms - self.before_ms


@dataclass(frozen=True)
class PhaseDifference:
    """One phase of two traces, after minus before in ms per step.

    The step's change is the sum of the categories' changes, less the change of their overlap, plus the change of the
    time in which nothing runs, plus a residual: every figure is a median of its own, and medians do not add up.

    Attributes:
        wall: whether `step_ms` is from a step's begin to the next one's, or of the kernels' span where a trace has one
            step of the phase.
        step_ms: before and after; `busy_ms` likewise.
        new, vanished: functions that run on one side only, those that take the most first.
        gemm_ratio: how many times faster the expert GEMMs are; None where one side has none. `ceiling`: what that alone
            would make of the first trace's busy time, and of its wall time (Amdahl's law, see figures.Ceiling).
    """

    name: str
    changes: tuple[Change, ...]
    wall: bool
    step_ms: tuple[float, float] | None
    busy_ms: tuple[float, float] | None
    overlap_ms: float | None
    waiting_ms: float | None
    residual_ms: float | None
    new: tuple[Function, ...]
    vanished: tuple[Function, ...]
    gemm_ratio: float | None
    ceiling: tuple[float, float | None] | None

    @property
    def kernel_ms(self) -> float:
        """The categories' changes together."""
        return sum(each.change_ms for each in self.changes)

    @property
    def busy_ratio(self) -> float | None:
        """How many times faster the second trace's kernels are: the ratio that they predict if nothing waits."""
        return self.busy_ms[0] / self.busy_ms[1] if self.busy_ms and self.busy_ms[1] else None

    @property
    def step_ratio(self) -> float | None:
        """The same of the whole step under the profiler, waiting included."""
        return self.step_ms[0] / self.step_ms[1] if self.step_ms and self.step_ms[1] else None


def make(before: Breakdown, after: Breakdown) -> tuple[PhaseDifference, ...]:
    """The difference of two traces in every phase that both have."""
    pairs = [(phase, after.phase(phase.name)) for phase in before.phases]
    return tuple(_phase(one, two) for one, two in pairs if two is not None)


def _phase(one: Phase, two: Phase) -> PhaseDifference:
    changes = []
    for category in CATEGORIES:
        a, b = one.share(category), two.share(category)
        if a.launches or b.launches or a.ms or b.ms:
            changes.append(Change(category, a.ms, b.ms, a.launches, b.launches))
    wall = one.wall_ms is not None and two.wall_ms is not None
    steps = (one.wall_ms, two.wall_ms) if wall else (one.span_ms, two.span_ms)
    timed = None not in (*steps, one.busy_ms, two.busy_ms, one.overlap_ms, two.overlap_ms)
    if not timed:
        steps_ms = busy = overlap = waiting = residual = None
    else:
        steps_ms, busy = (steps[0], steps[1]), (one.busy_ms, two.busy_ms)
        overlap = two.overlap_ms - one.overlap_ms  # type: ignore[operator]
        waiting = (steps[1] - busy[1]) - (steps[0] - busy[0])  # type: ignore[operator]
        kernels = sum(each.change_ms for each in changes)
        residual = (steps[1] - steps[0]) - (kernels - overlap + waiting)  # type: ignore[operator]
    before, now = one.share("expert_gemm").ms, two.share("expert_gemm").ms
    ratio = before / now if before and now else None
    ceiling = None
    if ratio is not None:
        ceiling = (one.busy_ceiling.at(ratio), one.wall_ceiling.at(ratio) if one.wall_ceiling else None)
    return PhaseDifference(
        one.name, tuple(changes), wall, steps_ms, busy, overlap, waiting, residual,  # type: ignore[arg-type]
        new=_only(two.functions, one.functions), vanished=_only(one.functions, two.functions),
        gemm_ratio=ratio, ceiling=ceiling,
    )  # fmt: skip


def _only(these: Sequence[Function], those: Sequence[Function]) -> tuple[Function, ...]:
    known = {each.name for each in those}
    return tuple(each for each in these if each.name not in known)[:_NAMED]


def _told(ms: float) -> str:
    if round(ms, 3) == 0:
        return "cost the same"
    return f"cost {ms:.3f} ms more" if ms > 0 else f"cost {-ms:.3f} ms less"


def explain(found: PhaseDifference, names: tuple[str, str], measured: float | None = None) -> str:
    """One paragraph: what the expert GEMMs gained, what took it back, and what that predicts.

    Args:
        names: of the two traces.
        measured: how many times faster the second is without a profiler, where that is known.
    """
    one, two = names
    per = "in all" if found.name == WHOLE else "per step"
    if found.step_ms is None or found.busy_ms is None or found.waiting_ms is None:
        return f"{found.name}: kernels change by {found.kernel_ms:+.3f} ms {per}; the traces have no times to compare."
    expert = next((each for each in found.changes if each.category == "expert_gemm"), None)
    small = _SMALL * found.step_ms[0]
    gain = -expert.change_ms if expert else 0.0
    others = sorted((each for each in found.changes if each is not expert), key=lambda each: -abs(each.change_ms))
    costs = [f"{each.category} {each.change_ms:+.3f} ms" for each in others if each.change_ms > small]
    gains = [f"{each.category} {each.change_ms:+.3f} ms" for each in others if each.change_ms < -small]
    launches = sum(each.after_launches for each in found.changes) - sum(each.before_launches for each in found.changes)
    parts = [
        f"{found.name}: the expert GEMMs of {two} take {abs(gain):.3f} ms {'less' if gain >= 0 else 'more'} {per} "
        f"than those of {one}" + (f" ({expert.before_ms:.3f} to {expert.after_ms:.3f} ms)" if expert else "")
    ]
    if costs:
        parts.append(
            f"of that, other kernels take back {', '.join(costs)}" if gain > 0 else f"besides {', '.join(costs)}"
        )
    if gains:
        parts.append(f"other kernels give {', '.join(gains)}")
    if abs(found.waiting_ms) > small:
        parts.append(
            f"gaps between kernels {'grow' if found.waiting_ms > 0 else 'shrink'} by {abs(found.waiting_ms):.3f} ms "
            f"({launches:+.0f} launches)"
        )
    gemms = -sum(each.change_ms for each in found.changes if each.category in _GEMMS)
    rest = sum(each.change_ms for each in found.changes if each.category not in _GEMMS)
    text = (
        "; ".join(parts) + f". In all: GEMMs {_told(-gemms)}, other kernels {_told(rest)}, waiting "
        f"{_told(found.waiting_ms)}, so a step of {found.step_ms[0]:.3f} ms becomes one of {found.step_ms[1]:.3f} ms "
        "under the profiler."
    )
    if found.gemm_ratio is not None and found.ceiling is not None:
        text += (
            f" Expert GEMMs {found.gemm_ratio:.2f}x as fast would alone make kernels {found.ceiling[0]:.3f}x as fast."
        )
    text += (
        f" Kernels alone predict {found.busy_ratio:.3f}x, the step under the profiler, gaps included, "
        f"{found.step_ratio:.3f}x"
    )
    text += f"; measured without it: {measured:.3f}x." if measured is not None else "."
    if found.residual_ms is not None and abs(found.residual_ms) > small:
        text += f" {found.residual_ms:+.3f} ms {per} are left unexplained (medians do not add up)."
    return text
