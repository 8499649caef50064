"""What a trace comes to, in sentences, and how its figures are written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from moe_eval.records.kernels import Collectives, KernelsRecord, KernelTime, LateRank, PhaseTime
from moe_eval.report.text import plain
from moe_eval.traces.steps import OUTSIDE, UNKNOWN, WHOLE

NAME_LENGTH = 100  # characters of a kernel's name
_NOTHING = 1e-9  # ms: profilers count whole nanoseconds, so less is the rounding of a sum
_REASONS = 2  # why a rank is late, that a sentence lists


def ms(value: float | None, *, is_withheld: bool = False, signed: bool = False) -> str:
    """A time: "none" for 0, "-" where the trace has no such figure, "withheld" where a warning says why."""
    if value is None:
        return "withheld" if is_withheld else "-"
    if abs(value) < _NOTHING:
        return "none"
    if abs(value) < 0.0005:
        return "<0.001"
    return f"{value:{'+' if signed else ''},.3f}"


def percent(share: float) -> str:
    """A share of 1 in percent, without the sign."""
    return "none" if share == 0 else "<0.1" if share < 0.0005 else f"{100 * share:.1f}"


def count(value: float | None) -> str:
    """A median count of a step, which may end in a half."""
    return "-" if value is None else "none" if value == 0 else f"{value:,.1f}".removesuffix(".0")


def short(name: str) -> str:
    """A kernel's name, cut."""
    return name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 3]}..."


def listed(kernels: Iterable[KernelTime]) -> str:
    """Kernels in a sentence."""
    return "; ".join(f"{short(kernel.name)} ({ms(kernel.ms)} ms)" for kernel in kernels)


def main_phases(names: Iterable[str]) -> list[str]:
    """The phases to show first: all but what is outside of steps, unless there is nothing else."""
    phases = list(names)
    return [name for name in phases if name != OUTSIDE] or phases


def cautions(record: KernelsRecord, whose: str = "") -> list[str]:
    """The capture's warnings and notes, a sentence each. `whose`: the trace's name, where there are two."""
    start = f"Warning ({whose}): " if whose else "Warning: "
    warnings = [start + warning.text for warning in record.warnings]
    return [*warnings, *(f"{whose}: {note}" if whose else note for note in record.notes)]


def conclusion(record: KernelsRecord) -> list[str]:
    """What ran, what a step takes, what it would take with free experts, and what ranks wait for."""
    lines = [ran(record)]
    for name in main_phases(record.phases):
        phase = record.phases[name]
        spoiled = record.withheld(name)
        lines.append(f"{step(name, phase, spoiled)} {free(phase, spoiled)}")
        if len(phase.ranks) > 1:
            lines.append(f"{name}: {ranks(phase)}")
    return lines


def ran(record: KernelsRecord) -> str:
    """The precision and backend of the experts, the GPUs and the steps."""
    gpus = ", ".join(sorted(set(record.source.gpus if record.source else ()))) or "GPU without a name"
    backend = f" on {record.moe_backend_seen}" if record.moe_backend_seen else ""
    if record.precision_seen:
        experts = f"the experts ran {record.precision_seen}{backend}{', as labelled' if record.verified else ''}"
    else:
        experts = f"the precision of the experts{backend} is not known ({plain(record.evidence or 'no evidence')})"
    steps = [_steps(name, phase) for name, phase in record.phases.items() if name not in (OUTSIDE, WHOLE)]
    number = f"{record.devices} x " if record.devices > 1 else ""
    return f"{record.trace}: {experts}, {number}{gpus}, {', '.join(steps) or 'no steps'}."


def step(name: str, phase: PhaseTime, spoiled: frozenset[str]) -> str:
    """What a step of the phase takes."""
    whose = subject(name).capitalize()
    if phase.wall_ms is not None:
        return f"{whose} takes {ms(phase.wall_ms)} ms under the profiler."
    if spoiled & {"wall_ms", "span_ms"}:
        return f"What {whose.lower()} takes is withheld."
    if phase.span_ms is not None:
        return f"{whose} takes {ms(phase.span_ms)} ms under the profiler, to its last kernel's end."
    return f"{whose} has {ms(phase.total_ms)} ms of kernels."


def free(phase: PhaseTime, spoiled: frozenset[str]) -> str:
    """What it would take if its expert GEMMs took no time, or half."""
    if "expert_gemm" not in phase.categories:
        return "No expert GEMM runs in it."
    times = free_times(phase, spoiled)
    if times is None:
        return "What it would take with free experts is withheld."
    whose = "it" if phase.wall_ms is not None else "its kernels"
    return f"With free experts {whose} would take {times[0]}, with experts twice as fast {times[1]}."


def free_times(phase: PhaseTime, spoiled: frozenset[str]) -> tuple[str, str] | None:
    """The time without that of the expert GEMMs, and with half of it: of a step, else of its kernels.

    None where a warning withholds it, or where no expert GEMM runs.
    """
    base_ms, ceiling = phase.wall_ms, phase.wall_ceiling
    if base_ms is None:
        base_ms, ceiling = phase.busy_ms, phase.ceiling
        if base_ms is None and "busy_ms" not in spoiled:  # a summary, in which nothing overlaps
            base_ms = phase.total_ms
        if base_ms is not None and len(phase.ranks) > 1:  # such a ceiling is of the time without waiting
            base_ms -= max(rank.wait_ms for rank in phase.ranks)
    if base_ms is None or ceiling is None or "expert_gemm" not in phase.categories:
        return None
    free_time = "no time" if ceiling.if_free is None else f"{ms(base_ms / ceiling.if_free)} ms ({ceiling.if_free:.2f}x)"
    return free_time, f"{ms(base_ms / ceiling.if_twice_as_fast)} ms ({ceiling.if_twice_as_fast:.2f}x)"


def ranks(phase: PhaseTime) -> str:
    """What collectives transfer, what ranks wait, and which rank is last and why."""
    waits = [rank.wait_ms for rank in phase.ranks]
    waiting = " to ".join(dict.fromkeys((ms(min(waits)), ms(max(waits)))))
    collectives = phase.collectives
    if collectives is None:
        sentences = [f"{len(phase.ranks)} ranks. Nothing tells what they wait for each other."]
    else:
        sentences = [
            f"in collectives {len(phase.ranks)} ranks transfer for {ms(collectives.transfer_ms)} ms and wait for "
            f"{waiting} ms a step.",
            *(late(rank, collectives) for rank in collectives.late[:1]),
        ]
        if collectives.unmatched:
            sentences.append(f"{collectives.unmatched} collectives of the phase lack a rank and count as neither.")
    if phase.expert_imbalance is not None:
        sentences.append(f"The slowest rank's expert GEMMs take {phase.expert_imbalance:.2f} times the mean.")
    return " ".join(sentences)


def late(rank: LateRank, collectives: Collectives) -> str:
    """At how many collectives a rank is last, by how much, and why."""
    reasons = [f"{name} ({ms(time)} ms)" for name, time in list(rank.because.items())[:_REASONS]]
    because = f", because of {' and '.join(reasons)}" if reasons else ""
    return (
        f"Rank {rank.rank} is last at {count(rank.collectives)} of {count(collectives.matched)} of them, by "
        f"{ms(rank.late_ms)} ms{because}."
    )


def statistic(phases: Mapping[str, PhaseTime]) -> str:
    """What the figures of a table are."""
    if WHOLE in phases:
        return "Sums over the whole trace, in ms:"
    of_ranks = " of the slowest rank" if any(len(phase.ranks) > 1 for phase in phases.values()) else ""
    return f"Medians over the steps{of_ranks}, in ms per step:"


def overlap(phase: PhaseTime, spoiled: frozenset[str]) -> str:
    """The cell for time in which more than one kernel runs."""
    return ms(phase.overlap_ms, is_withheld="overlap_ms" in spoiled)


def waiting(phase: PhaseTime, spoiled: frozenset[str]) -> str:
    """The cell for time in which nothing runs, up to the next step where there is one."""
    if phase.idle_ms is None or phase.busy_ms is None or "wall_ms" in spoiled:
        return ms(None, is_withheld=bool(spoiled & {"idle_ms", "busy_ms", "wall_ms"}))
    return ms(phase.idle_ms if phase.wall_ms is None else max(0.0, phase.wall_ms - phase.busy_ms))


def length(phase: PhaseTime, spoiled: frozenset[str]) -> str:
    """The cell for a step, up to the next one where there is one."""
    value = phase.span_ms if phase.wall_ms is None and "wall_ms" not in spoiled else phase.wall_ms
    return ms(value, is_withheld=bool(spoiled & {"wall_ms", "span_ms"}))


def work(kernel: KernelTime) -> str:
    """The category of a kernel, with what else it does."""
    return " + ".join((kernel.category, *kernel.fused_with))


def source(record: KernelsRecord, whose: str = "") -> str:
    """Where the figures are from. `whose`: the trace's name, where there are two."""
    rows = (("kernels", record.kernels), ("copies", record.copies), ("memory sets", record.sets))
    counts = ", ".join(f"{name} {size:,}" for name, size in rows if size)
    other = record.categories.get("other")
    share = percent(other.share if other else 0.0)
    return (
        f"{whose or 'Read'}: {record.source.format if record.source else 'unknown format'}, {counts}. "
        f"Steps by: {record.steps_found_by}. Gate GEMMs: {record.gates_told}. Not classified: {share}"
        f"{' %' if share != 'none' else ''}."
    )


def _steps(name: str, phase: PhaseTime) -> str:
    aside = ", ".join(f"{size} {reason}" for reason, size in phase.set_aside.items())
    kind = "" if name == UNKNOWN else f"{name} "
    return f"{phase.steps} {kind}step{'s' if phase.steps > 1 else ''}" + (f" ({aside} set aside)" if aside else "")


def subject(name: str) -> str:
    """What a phase's figures are of."""
    others = {UNKNOWN: "a step", WHOLE: "the whole trace", OUTSIDE: "what is outside of steps"}
    return others.get(name, f"a {name} step")
