"""What a broken-down trace says: figures of phases, categories and functions, and ceilings."""

from __future__ import annotations

from dataclasses import dataclass

from moe_eval.traces.precision_seen import Seen

TOP = 15


@dataclass(frozen=True)
class Share:
    """A category's part of a step: medians over the steps. `share`: of the sum of all categories' times, 0 to 1."""

    category: str
    ms: float
    share: float
    launches: float
    launches_per_layer: float | None


@dataclass(frozen=True)
class Function:
    """One kernel of a phase, by its name: means over the steps."""

    name: str
    category: str
    fused_with: tuple[str, ...]
    ms: float
    launches: float


@dataclass(frozen=True)
class Ceiling:
    """How many times faster a step could become if its expert GEMMs took no time, or ran twice as fast.

    With f the part of the step in which nothing but expert GEMMs run: 1 / (1 - f) and 1 / (1 - f + f / s) (Amdahl's
    law). None where f is 1.

    Attributes:
        share: f. `free`: of 1 / (1 - f). `twice`: for s = 2.
    """

    share: float
    free: float | None
    twice: float

    def at(self, speed_up: float) -> float:
        """For expert GEMMs that are faster by this factor."""
        return 1 / (1 - self.share + self.share / speed_up)


@dataclass(frozen=True)
class Phase:
    """One phase of a trace; times in ms, medians over the steps of all devices that are not set aside.

    Attributes:
        kernel_ms: the categories' times together. `busy_ms`: with at least one kernel running (the union of their
            intervals). `overlap_ms`: more than one. `span_ms`: from the first kernel to the end of the last.
            `idle_ms`: of the span, nothing running. `wall_ms`: from a step's begin to the next one's; `gap_ms`: of it,
            between the two. None where the trace has no times or no next step.
        aside: reasons and counts of steps that were set aside.
        classified: the share of kernel time that has a category other than `other`; `unclassified`: the names of the
            rest that take the most.
        layers: by layer of the model, its kernels' ms per step, where ranges name layers.
        moe_layers: MoE blocks of a step as the order of launches tells.
    """

    name: str
    steps: int
    aside: dict[str, int]
    shares: tuple[Share, ...]
    functions: tuple[Function, ...]
    kernel_ms: float
    busy_ms: float | None
    overlap_ms: float | None
    span_ms: float | None
    idle_ms: float | None
    wall_ms: float | None
    gap_ms: float | None
    classified: float
    unclassified: tuple[Function, ...]
    busy_ceiling: Ceiling
    wall_ceiling: Ceiling | None
    moe_layers: int | None
    layers: dict[int, float]

    def share(self, category: str) -> Share:
        """A category's part; an empty one where none of it ran."""
        found = next((each for each in self.shares if each.category == category), None)
        return found or Share(category, 0.0, 0.0, 0.0, None)

    @property
    def top(self) -> tuple[Function, ...]:
        """The functions that take the most."""
        return self.functions[:TOP]


@dataclass(frozen=True)
class Breakdown:
    """A trace by phases, how they were found, and what the experts ran in."""

    phases: tuple[Phase, ...]
    found_by: str
    gates: str
    devices: int
    rows: int
    total_ns: int
    seen: Seen

    def phase(self, name: str) -> Phase | None:
        return next((each for each in self.phases if each.name == name), None)


def ceiling(share: float) -> Ceiling:
    """The ceiling for a share of a step, 0 to 1."""
    share = min(1.0, max(0.0, share))
    return Ceiling(share, 1 / (1 - share) if share < 1 else None, 1 / (1 - share / 2))
