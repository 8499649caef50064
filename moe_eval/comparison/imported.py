"""What forbids to compare speed that another tool measured. What a file does not state forbids nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from moe_eval.records.latency import LatencyRecord
from moe_eval.records.quality import QualityRecord
from moe_eval.records.tool import LOADS, Load

# by label, the word with which a user lets it differ
_ACROSS = {"GPU": "gpus", "number of GPUs": "gpu_count", "engine": "engines", "version of the engine": "versions"}


def is_imported(first: LatencyRecord | QualityRecord, second: LatencyRecord | QualityRecord) -> bool:
    """Whether another tool measured one of both."""
    return any(isinstance(record, LatencyRecord) and record.tool is not None for record in (first, second))


def differences(
    first: LatencyRecord | QualityRecord, second: LatencyRecord | QualityRecord, across: Collection[str]
) -> Iterator[str]:
    """A sentence for every reason. `across`: what may differ nevertheless, see comparable.ACROSS."""
    if not isinstance(first, LatencyRecord) or not isinstance(second, LatencyRecord):
        return
    loads = _load(first), _load(second)
    if loads[0] != loads[1]:
        yield f"Speed was measured under another kind of load ({LOADS[loads[0]]}, and {LOADS[loads[1]]})."
    shapes = [[shape.name for shape in record.shapes] for record in (first, second)]
    if not set(shapes[0]) & set(shapes[1]):
        sides = " and ".join(", ".join(names) for names in shapes)
        yield f"Speed was measured at other shapes ({sides})."
    sides_by_label = zip(_labels(first).items(), _labels(second).values(), strict=True)
    for (label, before), after in sides_by_label:
        if _ACROSS.get(label) in across:
            continue
        if before is not None and after is not None and before != after:
            yield f"Speed was measured with another {label} ({before} and {after})."


def _load(record: LatencyRecord) -> Load:
    return record.tool.load if record.tool else "batch"


def _labels(record: LatencyRecord) -> dict[str, object]:
    """What has to be the same, by its name in a sentence. None where the record does not state it."""
    tool, facts = record.tool, record.labels.engine
    return {
        "GPU": record.gpu_name if tool else record.gpu_name or "no GPU",
        "number of GPUs": tool.gpus if tool else (facts.gpus if facts else 0) or 1,
        "engine": record.engine,
        "version of the engine": facts.version if facts else tool.engine_version if tool else None,
        "kind of weights": record.weights,
        "rate of requests": tool.request_rate or "none" if tool and tool.load == "serving" else None,
    }
