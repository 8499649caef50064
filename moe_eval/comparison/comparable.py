"""What forbids to compare two recorded arms, and which labels of theirs differ without forbidding it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from moe_eval.records.by_arm import ArmResults

GPUS = "gpus"
_ENGINE_FACTS = ("name", "version", "weights", "architecture", "vocabulary")
# facts that have a name of their own among the labels
_SHORT = {
    **{"name": "engine", "version": "engine_version", "moe_backend_observed": "moe_backend"},
    **{each: each for each in ("precision", "quant_algo", "weights", "emulated", "checkpoint", "fingerprint")},
}


def measured(record: Mapping[str, Any] | None) -> bool:
    """Whether a record of speed or perplexity holds figures; an arm that broke down half way may have some."""
    if record is None or record["status"] == "skipped":
        return False
    scored = record["status"] == "finished" and (record.get("perplexity") or 0) > 0
    return bool(record.get("shapes")) or scored


def engine(record: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The engine's facts of a record; empty where nothing was loaded."""
    found = (record or {}).get("labels", {}).get("engine")
    return found if isinstance(found, Mapping) else {}


def one_run(a: Mapping[str, Any] | None, b: Mapping[str, Any] | None) -> bool:
    """Whether two records are of one run: one start of a command, or one that resumed it, on the same code and machine.

    Only then are blocks measured side by side, so that drift cancels in their ratio. A record that names no run is of
    none that is known.
    """
    if a is None or b is None or not a.get("run_id"):
        return False
    return all(a.get(key) == b.get(key) for key in ("run_id", "asked", "schedule", "git", "machine"))


def differs(reference: ArmResults, other: ArmResults, across: Collection[str] = ()) -> list[str]:
    """Why two arms cannot be compared, a few words for each reason; empty where they can.

    Args:
        across: what may differ nevertheless: GPUS.
    """
    found = [reason for arm in (reference, other) for reason in _not_itself(arm)]
    for kind, what in (("perf", "speed"), ("ppl", "perplexity")):
        a, b = getattr(reference, kind), getattr(other, kind)
        if not (measured(a) and measured(b)):
            continue
        if GPUS not in across and _gpus(a) != _gpus(b):
            found.append(f"{what} on another GPU ({_gpus(a)} and {_gpus(b)})")
        for fact in _ENGINE_FACTS:
            one, two = engine(a).get(fact), engine(b).get(fact)
            if one != two:
                named = {"name": "another engine", "version": "another version of the engine"}.get(
                    fact, f"other {fact}"
                )
                found.append(f"{what} with {named} ({one} and {two})")
    if measured(reference.perf) and measured(other.perf):
        digests = [arm.perf["workload"]["digest"] for arm in (reference, other) if arm.perf]
        if digests[0] != digests[1]:
            found.append(f"speed on other prompts or shapes (digests {digests[0]} and {digests[1]})")
    if reference.ppl and other.ppl and measured(reference.ppl) and measured(other.ppl):
        found += _windows(reference.ppl, other.ppl)
    return list(dict.fromkeys(found))


def _not_itself(arm: ArmResults) -> Iterator[str]:
    """Where an arm did not run what its name says."""
    for record in (arm.perf, arm.ppl):
        planned = record.get("precision_planned", record["precision"]) if record else None
        ran = engine(record).get("precision")
        if ran is not None and ran != planned:
            yield f"{arm.name} ran {ran} where {planned} was planned"
    for shape, record in arm.kernels.items():
        if record["contradiction"]:
            yield f"{arm.name}{f' at {shape}' if shape else ''}: {record['contradiction']}"


def _gpus(record: Mapping[str, Any]) -> str:
    name, count = record.get("gpu_name"), engine(record).get("gpus") or 1
    return "no GPU" if name is None else str(name) if count == 1 else f"{count} x {name}"


def _windows(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    if a["dataset_digest"] == b["dataset_digest"]:
        return []
    named = {"dataset": "data set", "input_len": "window", "num_chunks": "number of windows"}
    other = [
        f"perplexity over another {what} ({a[key]} and {b[key]})" for key, what in named.items() if a[key] != b[key]
    ]
    digests = f"digests {a['dataset_digest']} and {b['dataset_digest']}"
    return other or [f"perplexity over other tokens of the same text: another tokenizer ({digests})"]


def labels(reference: ArmResults, other: ArmResults) -> list[dict[str, str]]:
    """The labels whose values differ, each as `label`, `reference` and `other`, by the label's name."""
    found: dict[str, tuple[str, str]] = {}
    for kind in ("ppl", "perf"):
        a, b = getattr(reference, kind), getattr(other, kind)
        if measured(a) and measured(b):
            one, two = dict(_flat(a)), dict(_flat(b))
            found |= {key: (one.get(key, "-"), two.get(key, "-")) for key in {**one, **two}}
    return [
        {"label": key, "reference": values[0], "other": values[1]}
        for key, values in sorted(found.items())
        if values[0] != values[1]
    ]


def same_arm(reference: ArmResults, other: ArmResults) -> bool:
    """Whether both are one precision of one checkpoint whose labels differ in nothing but how often it was measured."""
    both = [
        (a, b) for a, b in ((reference.perf, other.perf), (reference.ppl, other.ppl)) if measured(a) and measured(b)
    ]
    if reference.precision != other.precision or not both:
        return False
    if any(not engine(record) or engine(record) != engine(also) for record, also in both):
        return False
    return all(each["label"].startswith(("schedule.", "git")) for each in labels(reference, other))


def _flat(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every label as text, under its path."""
    facts = engine(record)
    yield from ((label, str(facts.get(key))) for key, label in _SHORT.items() if key in facts)
    yield from (
        (key, str(record[key])) for key in ("gpu_name", "sm_version", "fusion_disabled", "git") if key in record
    )
    machine = record.get("machine")
    if isinstance(machine, Mapping):
        yield from ((f"machine.{key}", str(machine.get(key))) for key in ("os", "python", "cpu", "driver", "cuda"))
    for name in ("versions", "schedule", "workload"):
        yield from _paths(record.get(name), f"{name}.")
    yield from _paths({key: each for key, each in facts.items() if key not in _SHORT}, "engine.")
    yield from _paths({key: each for key, each in record["labels"].items() if key != "engine"}, "")


def _paths(value: Any, at: str) -> Iterator[tuple[str, str]]:
    for key, each in value.items() if isinstance(value, Mapping) else ():
        if isinstance(each, Mapping):
            yield from _paths(each, f"{at}{key}.")
        else:
            yield f"{at}{key}", str(each)
