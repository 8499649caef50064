"""Which GPUs every load of every arm runs on."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence

from moe_eval.data.workload import Shape
from moe_eval.frozen import frozen
from moe_eval.machine.hardware import Gpu
from moe_eval.runner import fit
from moe_eval.runner.arm_plan import Arm

Indices = tuple[int, ...]  # of GPUs of the run
VISIBLE = "CUDA_VISIBLE_DEVICES"


@frozen
class Placement:
    """Where arms run.

    Attributes:
        together: whether all timed arms are loaded at once.
        rounds: the GPUs of every arm by name. Load i has round i, over and over. Arms that do not share GPUs change
            places from load to load, so that a faster GPU favours each equally often.
    """

    together: bool
    rounds: tuple[Mapping[str, Indices], ...]

    def gpus(self, arm: str, load: int = 0) -> Indices:
        """The GPUs of a load of an arm."""
        return self.rounds[max(0, load) % len(self.rounds)][arm]

    def of_arm(self, arm: str) -> tuple[Indices, ...]:
        """The GPUs of an arm by round."""
        return tuple(places[arm] for places in self.rounds)


def place(
    arms: Sequence[Arm], timed: Collection[str], shapes: Sequence[Shape], gpus: Sequence[Gpu], *, apart: bool = False
) -> Placement:
    """Place arms: timed ones on the first GPUs that hold all of them at once, else every arm by itself.

    Args:
        timed: names of arms that take turns where they are loaded at once.
        apart: load one arm at a time in any case.
    """
    free = fit.free(gpus)
    needs = {arm.name: fit.need_of(arm, shapes, gpus) for arm in arms}
    counts = {arm.name: fit.gpu_count(arm.settings.options) for arm in arms}
    heaviest = max((need.total or 0 for need in needs.values()), default=0)
    alone = {name: _window(free, counts[name], (heaviest, needs[name].total or 0)) for name in needs}
    alone |= dict.fromkeys((arm.name for arm in arms if arm.is_endpoint), ())
    rounds = [alone]
    names = [arm.name for arm in arms if arm.name in timed]
    bytes_of = {name: needs[name].total for name in names if needs[name].cache is not None}
    is_bounded = not any(fit.takes_share(arm) for arm in arms if arm.name in timed)
    together = not apart and len(names) > 1 and is_bounded and None not in map(bytes_of.get, names)
    if together:
        orders = [[*names[first:], *names[:first]] for first in range(len(names))]
        packed = [_packed(free, [(name, counts[name], bytes_of[name] or 0) for name in order]) for order in orders]
        rounds = [{**alone, **places} for places in packed if places is not None]
        together = bool(rounds) and _are_even(rounds, {name: counts[name] for name in names})
    return Placement(together, _distinct(rounds if together else [alone], has_gpus=bool(gpus)))


def _are_even(rounds: Sequence[Mapping[str, Indices]], counts: Mapping[str, int]) -> bool:
    """Whether arms on as many GPUs run on the same ones, all rounds together: two GPUs of one kind differ in speed."""
    groups = {(count, *sorted(places[name] for places in rounds)) for name, count in counts.items()}
    return len(groups) == len(set(counts.values()))


def _distinct(rounds: Sequence[Mapping[str, Indices]], *, has_gpus: bool) -> tuple[Mapping[str, Indices], ...]:
    """The rounds, one of several that are alike. Arms have no GPUs where there are none."""
    if not has_gpus:
        return (dict.fromkeys(rounds[0], ()),)
    return tuple(rounds) if any(places != rounds[0] for places in rounds) else (rounds[0],)


def _window(free: Sequence[int], count: int, bounds: Sequence[int]) -> Indices:
    """The first neighbouring GPUs of which each has so many bytes free, by the first bound that some meet."""
    for bound in bounds:
        for first in range(len(free) - count + 1):
            if min(free[first : first + count]) >= bound:
                return tuple(range(first, first + count))
    return tuple(range(min(count, len(free))))


def _packed(free: Sequence[int], arms: Sequence[tuple[str, int, int]]) -> dict[str, Indices] | None:
    """Arms by name, each on the first GPUs that have room for it beside those before. None where one has none.

    Args:
        arms: the name, the number of GPUs, and the bytes on each.
    """
    room, places = list(free), dict[str, Indices]()
    for name, count, size in arms:
        window = _window(room, count, [size])
        if len(window) < count or min(room[index] for index in window) < size:
            return None
        places[name] = window
        for index in window:
            room[index] -= size
    return places


def visible(gpus: Indices, first: int) -> str:
    """The value of CUDA_VISIBLE_DEVICES by which a process sees these GPUs alone.

    The user's own value counts, whose entries may be indices, UUIDs and MIG slices.

    Args:
        first: the index of the run's first GPU among those that torch sees here.
    """
    entries = [entry.strip() for entry in os.environ.get(VISIBLE, "").split(",") if entry.strip()]
    indices = [first + index for index in gpus]
    return ",".join(entries[index] if index < len(entries) else str(index) for index in indices)
