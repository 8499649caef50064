"""In what two arms differ, by their records, in a few words: "fp8 on one GPU against bf16 on two"."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from moe_eval.checkpoint.precision import cache_bytes
from moe_eval.records.by_arm import ArmRecords
from moe_eval.records.labels import ArmSettings, EngineFacts, OptionValue

_TITLES = {"trtllm": "TensorRT-LLM", "vllm": "vLLM", "transformers": "Transformers"}
_COUNTS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")
_PLAIN_BYTES = 2.0  # a key-value cache of two bytes a number is what an engine takes by itself
_EXPERTS = ("enable_expert_parallel", "moe_expert_parallel_size")
# what other words say already
_COVERED = ("kv_cache_dtype", "tensor_parallel_size", "emulate", "scope", *_EXPERTS)


@dataclass(frozen=True)
class _Side:
    """What is recorded of one arm: what was planned, and what its engine said. None where it is not known."""

    precision: str
    settings: ArmSettings | None
    facts: EngineFacts | None

    @property
    def engine(self) -> str | None:
        return self.facts.name if self.facts else self.settings.engine if self.settings else None

    @property
    def gpus(self) -> int | None:
        return self.facts.gpus if self.facts else len(self.settings.gpus) if self.settings else None

    @property
    def cache(self) -> str | None:
        """The type of the key-value cache, where it is smaller than an engine's own choice."""
        dtype = self.facts.kv_cache_dtype if self.facts else None
        width = cache_bytes(dtype) if dtype else None
        return dtype if width is not None and width < _PLAIN_BYTES else None

    @property
    def options(self) -> Mapping[str, OptionValue]:
        return self.settings.options if self.settings else {}

    @property
    def splits_experts(self) -> bool:
        sizes = [self.options.get(name) for name in _EXPERTS]
        return any(size is True or (isinstance(size, int) and size > 1) for size in sizes)


def contrast(reference: ArmRecords, candidate: ArmRecords) -> str:
    """What is compared with what. Empty where arms differ in precision alone, or in nothing.

    Returns:
        The other arm first, as a verdict has it.
    """
    before, after = _side(reference), _side(candidate)
    parts = list(_parts(after, before)), list(_parts(before, after, after.gpus))
    if not any(parts):
        return ""
    return " against ".join(
        " ".join([side.precision, *phrases]) for side, phrases in zip((after, before), parts, strict=True)
    )


def gpu_counts(reference: ArmRecords, candidate: ArmRecords) -> tuple[int, int] | None:
    """Over how many GPUs both were timed. None where a side is not known, or was timed on none."""
    counts = [
        arm.latency.labels.engine.gpus if arm.latency and arm.latency.labels.engine else 0
        for arm in (reference, candidate)
    ]
    return (counts[0], counts[1]) if all(counts) else None


def _side(arm: ArmRecords) -> _Side:
    records = [record for record in (arm.latency, arm.quality) if record is not None]
    facts = next((record.labels.engine for record in records if record.labels.engine), None)
    settings = next((record.origin.arm for record in records if record.origin.arm), None)
    return _Side(facts.precision if facts else arm.precision, settings, facts)


def _parts(side: _Side, opposite: _Side, counted: int | None = None) -> Iterator[str]:
    """What a side has that the opposite one has not. `counted`: the GPUs that the words before have named."""
    if side.engine != opposite.engine and None not in (side.engine, opposite.engine):
        yield f"on {_TITLES.get(str(side.engine), str(side.engine))}"
    if side.gpus and opposite.gpus and side.gpus != opposite.gpus:
        count = _COUNTS[side.gpus] if side.gpus < len(_COUNTS) else str(side.gpus)
        yield f"on {count}" if counted else f"on {count} GPU{'s' * (side.gpus > 1)}"
    if side.cache != opposite.cache and side.cache is not None:
        yield f"with the KV cache in {side.cache.partition('_')[0]}"
    if side.splits_experts and not opposite.splits_experts:
        yield "with expert parallelism"
    settings = [
        f"{name}={value}"
        for name, value in side.options.items()
        if name not in _COVERED and opposite.options.get(name) != value
    ]
    if side.settings and opposite.settings:
        variables = opposite.settings.environment
        settings += [f"{k}={v}" for k, v in side.settings.environment.items() if variables.get(k) != v]
    if settings:
        yield f"with {' and '.join(settings)}"
