"""The difference of two traces by category: names of GEMMs differ between precisions, categories do not."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

from moe_eval.comparison.explained import EXPLAINED, cause, explains
from moe_eval.evaluators.kernels_record import short_name
from moe_eval.frozen import frozen
from moe_eval.records.kernels import CategoryTime, KernelsRecord, KernelTime, PhaseTime
from moe_eval.records.shape_comparison import CategoryChange, PhaseChange
from moe_eval.traces.collectives import SHOWN_CATEGORIES
from moe_eval.traces.steps import WHOLE

_KERNELS = 10  # new and vanished kernels that are listed
_GEMMS = ("expert_gemm", "dense_gemm", "gate_gemm")
_WAIT = "collective_wait"  # the time of kernels, and no work
_SMALL = 0.005  # changes under this part of the step are not mentioned
# the fields of a change that traces without times leave empty
_TIMED = (
    "step_ms busy_ms overlap_change_ms waiting_change_ms residual_ms predicted_ratio_busy predicted_ratio_step".split()  # noqa: SIM905
)
_CUT = "..."
_SIZE = re.compile(r"(?<=[<,\s])\d+[uUlL]*(?=\s*[,>])")  # a number among template arguments


@frozen
class KernelsReport:
    """What `moe-eval kernels --output` writes of two traces, and their difference by phase. Of one it is the record."""

    traces: tuple[KernelsRecord, ...]
    difference: Mapping[str, PhaseChange]


def changes(
    before: KernelsRecord, after: KernelsRecord, names: tuple[str, str], measured: Mapping[str, float | None]
) -> dict[str, PhaseChange]:
    """The difference of two traces in every phase that both have.

    Args:
        before, after: records from a file hold the 50 longest kernels of a phase. Of kernels beyond these none is new
            or has vanished.
        names: of the two arms.
        measured: by phase, how many times faster the second is without a profiler.
    """
    return {
        name: _phase_change(name, phase, after.phases[name], names, measured.get(name))
        for name, phase in before.phases.items()
        if name in after.phases
    }


def _phase_change(
    name: str, before: PhaseTime, after: PhaseTime, names: tuple[str, str], measured: float | None
) -> PhaseChange:
    categories = _category_changes(before, after)
    kernel_change = sum(change.change_ms for change in categories.values())
    is_wall = before.wall_ms is not None and after.wall_ms is not None
    gemms = [phase.categories.get("expert_gemm") for phase in (before, after)]
    ratio = gemms[0].ms / gemms[1].ms if gemms[0] and gemms[1] and gemms[0].ms and gemms[1].ms else None
    wall_ceiling = before.wall_ceiling
    change = PhaseChange(
        categories=categories,
        kernel_change_ms=kernel_change,
        step_is="wall" if is_wall else "span",
        **dict.fromkeys(_TIMED),
        expert_gemm_ratio=ratio,
        ceiling_busy=None if ratio is None or before.ceiling is None else before.ceiling.at(ratio),
        ceiling_wall=None if ratio is None or wall_ceiling is None else wall_ceiling.at(ratio),
        measured_ratio=measured,
        text="",
        new=_only(after.functions, before.functions),
        vanished=_only(before.functions, after.functions),
    )
    if before.busy_ms is not None and after.busy_ms:
        busy_ms = before.busy_ms, after.busy_ms
        change = replace(change, busy_ms=busy_ms, predicted_ratio_busy=busy_ms[0] / busy_ms[1])
    old, new = (_step_times(phase, is_wall) for phase in (before, after))
    if old and new:
        overlap = new[2] - old[2]
        waiting = (new[0] - new[1]) - (old[0] - old[1])
        change = replace(
            change,
            step_ms=(old[0], new[0]),
            busy_ms=(old[1], new[1]),
            overlap_change_ms=overlap,
            waiting_change_ms=waiting,
            residual_ms=(new[0] - old[0]) - (kernel_change - overlap + waiting),
            predicted_ratio_step=old[0] / new[0] if new[0] else None,
        )
    return replace(change, text=explain(name, change, names))


def _category_changes(before: PhaseTime, after: PhaseTime) -> dict[str, CategoryChange]:
    nothing = CategoryTime(0.0, 0.0, 0.0, None)
    category_changes = {}
    for category in SHOWN_CATEGORIES:
        old, new = (phase.categories.get(category, nothing) for phase in (before, after))
        if old.launches or new.launches or old.ms or new.ms:
            category_changes[category] = CategoryChange(old.ms, new.ms, new.ms - old.ms, old.launches, new.launches)
    return category_changes


def _step_times(phase: PhaseTime, is_wall: bool) -> tuple[float, float, float] | None:
    """Step, busy and overlap in ms."""
    step_ms = phase.wall_ms if is_wall else phase.span_ms
    if step_ms is None or phase.busy_ms is None or phase.overlap_ms is None:
        return None
    return step_ms, phase.busy_ms, phase.overlap_ms


def _only(kernels: Sequence[KernelTime], others: Sequence[KernelTime]) -> tuple[KernelTime, ...]:
    """The kernels that the others lack, longest first.

    A name that was cut (`...`) is that of any kernel that begins so. Another number among the template arguments is
    another size of the same kernel. Another type, as in `(Type)3`, is another kernel.
    """
    names = {_of_any_size(short_name(kernel).name) for kernel in others}
    beginnings = tuple(name.removesuffix(_CUT) for name in names if name.endswith(_CUT))
    single = []
    for kernel in map(short_name, kernels):
        name = _of_any_size(kernel.name)
        is_cut = name.endswith(_CUT) and any(other.startswith(name.removesuffix(_CUT)) for other in names)
        if name not in names and not name.startswith(beginnings) and not is_cut:
            single.append(kernel)
    return tuple(single[:_KERNELS])


@lru_cache(maxsize=1 << 12)  # arms run the same kernels at every shape
def _of_any_size(name: str) -> str:
    return _SIZE.sub("0", name)


def explain(name: str, change: PhaseChange, names: tuple[str, str]) -> str:
    """A paragraph on the phase of this name: the gain of the expert GEMMs, its costs elsewhere, and the speed-up.

    It is empty for a phase in which nothing ran.
    """
    per = "in all" if name == WHOLE else "per step"
    if change.step_ms is None or change.waiting_change_ms is None:
        busy = change.predicted_ratio_busy
        sentences = [
            f"{name}: kernels change by {change.kernel_change_ms:+.3f} ms {per}.",
            "Times of steps are missing or withheld." if busy else "Times are missing or withheld.",
            *([f"Under the profiler kernels alone predict {busy:.3f}x."] if busy else []),
        ]
        return " ".join([*sentences, *_measured(change, names)])
    if change.predicted_ratio_busy is None or change.predicted_ratio_step is None:
        return ""
    gemms = sum(category.change_ms for key, category in change.categories.items() if key in _GEMMS)
    others = sum(category.change_ms for key, category in change.categories.items() if key not in (*_GEMMS, _WAIT))
    ranks = f", waiting for other ranks {_cost(_waiting(change))}" if _WAIT in change.categories else ""
    sentences = [
        f"{name}: {'' if name == WHOLE else 'a step of '}{change.step_ms[0]:.3f} ms becomes "
        f"{'' if name == WHOLE else 'one of '}{change.step_ms[1]:.3f} ms under the profiler.",
        f"{_categories_sentence(change, names, per)}.",
        f"In all: GEMMs {_cost(gemms)}, other kernels {_cost(others)}{ranks}, waiting "
        f"{_cost(change.waiting_change_ms)}.",
    ]
    if change.expert_gemm_ratio is not None and change.ceiling_busy is not None:
        sentences.append(
            f"Expert GEMMs {change.expert_gemm_ratio:.2f}x as fast would alone make kernels {change.ceiling_busy:.3f}x "
            "as fast."
        )
    sentences.append(
        f"Kernels alone predict {change.predicted_ratio_busy:.3f}x, the step under the profiler, gaps included, "
        f"{change.predicted_ratio_step:.3f}x."
    )
    sentences += _measured(change, names)
    if change.residual_ms is not None and abs(change.residual_ms) > _SMALL * change.step_ms[0]:
        sentences.append(f"{change.residual_ms:+.3f} ms {per} are left unexplained (medians do not add up).")
    return " ".join(sentences)


def _measured(change: PhaseChange, names: tuple[str, str]) -> list[str]:
    """Sentences on the ratio without a profiler and on whether the kernels explain it."""
    if change.measured_ratio is None or change.predicted_ratio_busy is None:
        return []
    measured = f"The ratio measured without it is {change.measured_ratio:.3f}x."
    if explains(change) is None:
        return [measured]
    if explains(change):
        return [measured, "The kernels explain it."]
    why = f"The kernels do not explain it: both predictions are more than {100 * (EXPLAINED - 1):.0f} % away."
    return [measured, why, *filter(None, [cause(change, names)])]


def _categories_sentence(change: PhaseChange, names: tuple[str, str], per: str) -> str:
    """The change of the expert GEMMs, of other categories and of gaps, without those that are small."""
    waiting, small = change.waiting_change_ms or 0.0, _SMALL * (change.step_ms or (0.0, 0.0))[0]
    expert = change.categories.get("expert_gemm")
    gain = -expert.change_ms if expert else 0.0
    before, after = names
    parts = [
        f"The expert GEMMs of {after} take {abs(gain):.3f} ms {'less' if gain >= 0 else 'more'} {per} than those of "
        f"{before}" + (f" ({expert.before_ms:.3f} to {expert.after_ms:.3f} ms)" if expert else "")
    ]
    apart = ("expert_gemm", _WAIT)
    others = [(name, category.change_ms) for name, category in change.categories.items() if name not in apart]
    others.sort(key=lambda item: -abs(item[1]))
    costs = ", ".join(f"{name} {ms:+.3f} ms" for name, ms in others if ms > small)
    gains = ", ".join(f"{name} {ms:+.3f} ms" for name, ms in others if ms < -small)
    if costs:
        taken = sum(ms for _, ms in others if ms > small)
        parts.append(f"Other kernels {f'take back {100 * taken / gain:.0f} % of it' if gain > 0 else 'add'}: {costs}")
    if gains:
        parts.append(f"Other kernels take less too: {gains}")
    if abs(for_ranks := _waiting(change)) > small:
        parts.append(f"Waiting for other ranks {'grows' if for_ranks > 0 else 'shrinks'} by {abs(for_ranks):.3f} ms")
    if abs(waiting) > small:
        launches = sum(category.after_launches - category.before_launches for category in change.categories.values())
        parts.append(
            f"Gaps between kernels {'grow' if waiting > 0 else 'shrink'} by {abs(waiting):.3f} ms ({launches:+.0f} "
            "launches)"
        )
    return ". ".join(parts)


def _waiting(change: PhaseChange) -> float:
    """By how much waiting in collectives changes, in ms."""
    return change.categories[_WAIT].change_ms if _WAIT in change.categories else 0.0


def _cost(ms: float) -> str:
    if round(ms, 3) == 0:
        return "cost the same"
    return f"cost {ms:.3f} ms more" if ms > 0 else f"cost {-ms:.3f} ms less"
