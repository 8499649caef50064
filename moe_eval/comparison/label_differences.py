"""The labels in which two arms differ, and whether one is the other measured a second time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict

from moe_eval.comparison.comparable import Record, engine, measured_of_both
from moe_eval.records.by_arm import REPEAT_SUFFIX, ArmRecords
from moe_eval.records.comparison import LabelDifference
from moe_eval.records.latency import LatencyRecord
from moe_eval.records.serving import ServingRecord
from moe_eval.records.tasks import TasksRecord

# facts that have a name of their own among the labels
_FACT_LABELS = {
    "name": "engine",
    "version": "engine_version",
    "moe_backend_observed": "moe_backend",
    **{name: name for name in ("precision", "quant_algo", "weights", "emulated", "checkpoint", "fingerprint")},
}


def labels(reference: ArmRecords, candidate: ArmRecords) -> tuple[LabelDifference, ...]:
    """The labels whose values differ, by the label's name."""
    values: dict[str, tuple[str, str]] = {}
    for first, second in reversed(measured_of_both(reference, candidate).values()):
        before, after = dict(_labels(first)), dict(_labels(second))
        values |= {label: (before.get(label, "-"), after.get(label, "-")) for label in {**before, **after}}
    return tuple(LabelDifference(label, *sides) for label, sides in sorted(values.items()) if sides[0] != sides[1])


def is_repeat(reference: ArmRecords, candidate: ArmRecords) -> bool:
    """Whether both are one precision of one checkpoint whose labels differ in nothing but how often it was measured."""
    if candidate.name.removesuffix(REPEAT_SUFFIX) == reference.name.removesuffix(REPEAT_SUFFIX):
        return True
    pairs = measured_of_both(reference, candidate).values()
    if reference.precision != candidate.precision or not pairs:
        return False
    if any(engine(first) is None or engine(first) != engine(second) for first, second in pairs):
        return False
    if any(first.origin.arm != second.origin.arm for first, second in pairs):
        return False
    return all(row.label.startswith(("schedule.", "git")) for row in labels(reference, candidate))


def _labels(record: Record) -> Iterator[tuple[str, str]]:
    """Every label as text, under its path."""
    facts = asdict(record.labels.engine) if record.labels.engine else {}
    yield from ((label, str(facts[fact])) for fact, label in _FACT_LABELS.items() if fact in facts)
    yield from ((name, str(getattr(record, name))) for name in ("gpu_name", "sm_version"))
    if not isinstance(record, (TasksRecord, ServingRecord)):
        yield "fusion_disabled", str(record.fusion_disabled)
    yield "git", str(record.origin.git)
    yield from _paths(record.origin.arm.environment if record.origin.arm else {}, "environment.")
    if record.origin.machine:
        names = ("os", "python", "cpu", "driver", "cuda")
        yield from ((f"machine.{name}", str(getattr(record.origin.machine, name))) for name in names)
    yield from _paths(record.origin.versions, "versions.")
    if isinstance(record, LatencyRecord):
        for name, part in (("schedule", record.schedule), ("workload", record.workload), ("tool", record.tool)):
            yield from _paths(asdict(part) if part else {}, f"{name}.")
    yield from _paths({fact: value for fact, value in facts.items() if fact not in _FACT_LABELS}, "engine.")
    yield from ((name, str(getattr(record.labels, name))) for name in ("prefix_token_id", "tokenizer"))


def _paths(values: Mapping[str, object], prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _paths(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(list(value) if isinstance(value, tuple) else value)
