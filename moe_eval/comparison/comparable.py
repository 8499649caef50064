"""What forbids to compare two recorded arms, and which labels of theirs differ without forbidding it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Literal, get_args

from moe_eval.checkpoint.precision import cache_bytes
from moe_eval.comparison import imported
from moe_eval.records.by_arm import ArmRecords
from moe_eval.records.labels import EngineFacts, Origin, Status
from moe_eval.records.latency import LatencyRecord
from moe_eval.records.quality import QualityFigures, QualityRecord
from moe_eval.records.serving import ServingRecord
from moe_eval.records.tasks import TasksRecord

Across = Literal["engines", "versions", "gpus", "gpu_count", "checkpoint"]
# what may differ on request: engines with their libraries, GPUs in kind and number, checkpoints in model and weights
ACROSS: tuple[Across, ...] = get_args(Across)
Record = LatencyRecord | QualityRecord | TasksRecord | ServingRecord
_PLAIN_BYTES = 2.0  # of a number in 16 bits
# facts of the engine without which two figures are of two different things, their names in a sentence, and what lets
# them differ
_SAME_FACTS: Mapping[str, tuple[str, tuple[Across, ...]]] = {
    "name": ("another engine", ("engines",)),
    "version": ("another version of the engine", ("engines", "versions")),
    "weights": ("other weights", ("checkpoint",)),
    "architecture": ("another architecture", ("checkpoint",)),
    "vocabulary": ("another vocabulary", ("checkpoint",)),
}


def measured(record: Record | None) -> bool:
    """Whether a record holds figures. An arm that broke down half way may have some."""
    if record is None or record.status is Status.SKIPPED:
        return False
    if isinstance(record, TasksRecord):
        return record.results is not None
    if isinstance(record, ServingRecord):
        return any(any(point.loads) for point in record.points)
    return bool(record.shapes) if isinstance(record, LatencyRecord) else scored(record) is not None


def scored(record: QualityRecord | None) -> QualityFigures | None:
    """The figures of quality. None where nothing was scored to the end."""
    return record.figures if record is not None and record.status is Status.FINISHED else None


def engine(record: Record | None) -> EngineFacts | None:
    """None where nothing was loaded."""
    return record.labels.engine if record else None


def is_one_run(first: Record | None, second: Record | None) -> bool:
    """Whether two records are of one start of a command, or one that resumed it, on the same code and machine.

    Only then are blocks measured side by side, so that drift cancels in their ratio. A record that names no run is of
    none that is known.
    """
    if first is None or second is None or not first.origin.run_id:
        return False
    names = ("run_id", "options", "git", "machine")
    same_origin = all(getattr(first.origin, name) == getattr(second.origin, name) for name in names)
    return same_origin and getattr(first, "schedule", None) == getattr(second, "schedule", None)


def differences(reference: ArmRecords, candidate: ArmRecords, across: Collection[str] = ()) -> list[str]:
    """Why two arms cannot be compared, a sentence for each reason. Empty where they can.

    Args:
        across: what may differ nevertheless, of ACROSS. Engines and numbers of GPUs may where one run planned them so.
    """
    across = {*across, *_planned(reference, candidate)}
    reasons = [reason for arm in (reference, candidate) for reason in _contradictions(arm)]
    for subject, (first, second) in measured_of_both(reference, candidate).items():
        if isinstance(first, TasksRecord) or isinstance(second, TasksRecord):
            continue  # documents and prompts decide, see task_rows
        if isinstance(first, ServingRecord) or isinstance(second, ServingRecord):
            pass  # no other tool's are imported
        elif imported.is_imported(first, second):
            reasons += imported.differences(first, second, across)
            continue
        reasons += _engine_differences(subject, first, second, across)
        if subject in ("Speed", "Serving"):
            reasons += _software_differences(first, second, across)
    if measured(reference.latency) and measured(candidate.latency):
        workloads = [arm.latency.workload for arm in (reference, candidate) if arm.latency]
        digests = [workload.digest for workload in workloads if workload]
        if len(set(digests)) > 1:
            reasons.append(f"Speed was measured on other prompts or shapes (digests {' and '.join(digests)}).")
    reasons += _serving_differences(reference.serving, candidate.serving)
    figures = scored(reference.quality), scored(candidate.quality)
    if figures[0] and figures[1]:
        reasons += _window_differences(figures[0], figures[1])
    return list(dict.fromkeys(reasons))


def remedy(reference: ArmRecords, candidate: ArmRecords, across: Collection[str]) -> str | None:
    """How to compare two arms nevertheless. None where there is no way."""
    if differences(reference, candidate, ACROSS):
        return None
    needed: list[str] = [*across]
    for name in ("gpu_count", *(name for name in ACROSS if name != "gpu_count")):
        before = differences(reference, candidate, needed)
        if before and len(differences(reference, candidate, [*needed, name])) < len(before):
            needed.append(name)
    return f"moe-eval compare --across {','.join(needed)} compares them nevertheless."


def _planned(reference: ArmRecords, candidate: ArmRecords) -> set[str]:
    """What arms differ in because the run that measured both was asked for it."""
    for first, second in zip(*(_origins(arm) for arm in (reference, candidate)), strict=True):
        before, after = (origin.arm if origin else None for origin in (first, second))
        if first and second and before and after and first.run_id and first.run_id == second.run_id:
            names = ("gpu_count",) if len(before.gpus) != len(after.gpus) else ()
            return {*names, *(("engines",) if before.engine != after.engine else ())}
    return set()


def _origins(arm: ArmRecords) -> list[Origin | None]:
    return [record.origin if record else None for record in (arm.latency, arm.quality, arm.evaluated, arm.serving)]


def measured_of_both(reference: ArmRecords, candidate: ArmRecords) -> dict[str, tuple[Record, Record]]:
    """The records of what was measured of both arms, by the subject of a sentence."""
    records: dict[str, tuple[Record | None, Record | None]] = {
        "Speed": (reference.latency, candidate.latency),
        "Quality": (reference.quality, candidate.quality),
        "Tasks": (reference.evaluated, candidate.evaluated),
        "Serving": (reference.serving, candidate.serving),
    }
    return {
        subject: (first, second)
        for subject, (first, second) in records.items()
        if first and second and measured(first) and measured(second)
    }


def _contradictions(arm: ArmRecords) -> Iterator[str]:
    """Where an arm did not run what its name says."""
    records: tuple[Record | None, ...] = (arm.latency, arm.quality, arm.evaluated, arm.serving)
    for record in records:
        planned = record and record.precision
        if isinstance(record, (LatencyRecord, ServingRecord)):
            planned = record.precision_planned
        facts = engine(record)
        if facts and facts.precision != planned:
            yield f"{arm.name} ran {facts.precision} where {planned} was planned."
    for record in records:
        yield from _unmet_settings(arm.name, record)
    facts = engine(arm.latency) or engine(arm.quality)
    for shape, trace in arm.kernels.items():
        where = f" at {shape}" if shape else ""
        if trace.contradiction:
            yield f"{arm.name}{where}: {trace.contradiction.rstrip('.')}."
        loaded = _is_small(facts.kv_cache_dtype if facts else None)
        if trace.kv_cache_seen and loaded is not None and loaded != (trace.kv_cache_seen == "fp8"):
            dtype = facts.kv_cache_dtype if facts else None
            yield f"{arm.name}{where}: kernels kept the KV cache {trace.kv_cache_seen}, and the engine says {dtype}."


def _unmet_settings(name: str, record: Record | None) -> Iterator[str]:
    """Settings of an arm that its engine says it did not follow."""
    facts, settings = engine(record), record.origin.arm if record else None
    if facts is None or settings is None:
        return
    cache = settings.options.get("kv_cache_dtype")
    sizes = _is_small(str(cache)), _is_small(facts.kv_cache_dtype)
    if None not in sizes and sizes[0] != sizes[1]:
        yield f"{name} was to keep its KV cache in {cache} and kept it in {facts.kv_cache_dtype}."
    backend = settings.options.get("moe_backend")
    if backend not in (None, "auto") and facts.moe_backend_observed and not _is_backend(backend, facts):
        yield f"{name} was to run its experts on {backend} and ran them on {facts.moe_backend_observed}."


def _is_small(cache_dtype: str | None) -> bool | None:
    """Whether a key-value cache has fewer than 16 bits for a number. None where nobody knows."""
    width = cache_bytes(cache_dtype) if cache_dtype else None
    return None if width is None else width < _PLAIN_BYTES


def _is_backend(requested: object, facts: EngineFacts) -> bool:
    """Whether the implementation of experts that was observed is the requested one, under either's spelling.

    vLLM's labels are METHOD/KERNELS, joined by `+`. A method alone does not show its kernels.
    """
    observed, name = (re.sub("[^a-z0-9+/]", "", str(text).lower()) for text in (facts.moe_backend_observed, requested))
    parts = [part.partition("/")[2] if facts.name == "vllm" else part for part in observed.split("+")]
    return any(not part or (name in part and ("flashinfer" in part) == ("flashinfer" in name)) for part in parts)


def _engine_differences(subject: str, first: Record, second: Record, across: Collection[str]) -> Iterator[str]:
    gpus = _gpus(first), _gpus(second)
    is_count = first.gpu_name == second.gpu_name and first.gpu_name is not None
    if gpus[0] != gpus[1] and not {"gpus", *(("gpu_count",) if is_count else ())} & set(across):
        difference = "another number of GPUs" if is_count else "another GPU"
        yield f"{subject} was measured on {difference} ({gpus[0]} and {gpus[1]})."
    for fact, (difference, allowed) in _SAME_FACTS.items():
        values = getattr(engine(first), fact, None), getattr(engine(second), fact, None)
        if values[0] != values[1] and not set(allowed) & set(across):
            yield f"{subject} was measured with {difference} ({values[0]} and {values[1]})."


def _serving_differences(first: ServingRecord | None, second: ServingRecord | None) -> Iterator[str]:
    """What two servers were asked that was not the same."""
    if first is None or second is None or not (measured(first) and measured(second)):
        return
    digests = [record.workload.digest for record in (first, second) if record.workload]
    if len(set(digests)) > 1:
        yield f"Serving was measured with other requests (digests {' and '.join(digests)})."
    caching = {record.prefix_caching for record in (first, second)}
    if caching == {True, False}:  # of an endpoint nobody knows
        yield "Only one of the servers computed what prompts begin with once. Give both --prefix_caching, or neither."
    if first.limits != second.limits:
        yield "Goodput was measured within other limits. Give both the same --ttft_ms and --tpot_ms."


def _software_differences(first: Record, second: Record, across: Collection[str]) -> Iterator[str]:
    """What runs kernels beside the engine, where both records tell it."""
    for name, values in zip(
        ("driver", "CUDA", "torch"), zip(*map(_software, (first, second)), strict=True), strict=True
    ):
        allowed = {"versions"} | ({"engines"} if name != "driver" else set())
        if None not in values and values[0] != values[1] and not allowed & set(across):
            yield f"Speed was measured with another {name} ({values[0]} and {values[1]})."


def _software(record: Record) -> tuple[str | None, str | None, str | None]:
    machine, torch = record.origin.machine, record.origin.versions.get("torch")
    return (machine.driver, machine.cuda, torch) if machine else (None, None, torch)


def _gpus(record: Record) -> str:
    facts = engine(record)
    count = (facts.gpus if facts else 0) or 1
    return "no GPU" if record.gpu_name is None else record.gpu_name if count == 1 else f"{count} x {record.gpu_name}"


def _window_differences(first: QualityFigures, second: QualityFigures) -> list[str]:
    if first.dataset_digest == second.dataset_digest:
        return []
    texts = {"dataset": "data set", "input_len": "window", "num_chunks": "number of windows"}
    reasons = [
        f"Quality was measured over another {text} ({getattr(first, name)} and {getattr(second, name)})."
        for name, text in texts.items()
        if getattr(first, name) != getattr(second, name)
    ]
    return reasons or [
        "Quality was measured over other tokens of the same text, so the tokenizer or the "
        f"choice of windows differs (digests {first.dataset_digest} and {second.dataset_digest})."
    ]
