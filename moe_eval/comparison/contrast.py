"""In what two arms differ, by their records, in a few words: "fp8 on one GPU against bf16 on two"."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from moe_eval.checkpoint.precision import cache_bytes
from moe_eval.frozen import frozen
from moe_eval.records.by_arm import ArmRecords
from moe_eval.records.labels import ArmSettings, EngineFacts, OptionValue

_TITLES = {"trtllm": "TensorRT-LLM", "vllm": "vLLM", "transformers": "Transformers"}
_COUNTS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")
_PLAIN_BYTES = 2.0  # a key-value cache of two bytes a number is what an engine takes by itself
_EXPERTS = ("enable_expert_parallel", "moe_expert_parallel_size")
# what other words say already
_COVERED = ("kv_cache_dtype", "emulate", "scope", *_EXPERTS)
_TENSORS, _MOE = "tensor_parallel_size", "moe_backend"


@frozen
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
    def gpu(self) -> str | None:
        """What it runs on, by the hardware's name."""
        return self.facts.device_name.replace("cpu", "a CPU") if self.facts and self.facts.device_name else None

    @property
    def cache(self) -> str | None:
        """The type of the key-value cache, where it is smaller than an engine's own choice."""
        dtype = self.facts.kv_cache_dtype if self.facts else None
        width = cache_bytes(dtype) if dtype else None
        return dtype if width is not None and width < _PLAIN_BYTES else None

    @property
    def options(self) -> Mapping[str, OptionValue]:
        """Model arguments, but for those that leave the choice to the engine."""
        options = self.settings.options if self.settings else {}
        return {name: value for name, value in options.items() if value not in (None, "auto")}

    @property
    def expert_ranks(self) -> int:
        """Over how many GPUs its experts are spread whole. 1 where they are not."""
        sizes = [self.options.get(name) for name in _EXPERTS]
        return max(((self.gpus or 2) if size is True else size) if isinstance(size, int) else 1 for size in sizes)


def contrast(reference: ArmRecords, candidate: ArmRecords) -> str:
    """What is compared with what. Empty where arms differ in precision alone, or in nothing.

    Returns:
        The other arm first, as a verdict has it.
    """
    before, after = _side(reference), _side(candidate)
    parts = list(_parts(after, before)), list(_parts(before, after, is_second=True))
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


def _parts(side: _Side, opposite: _Side, *, is_second: bool = False) -> Iterator[str]:
    """What a side has that the opposite one has not. `is_second`: whether words before have named GPUs already."""
    if side.precision == opposite.precision and (checkpoint := _checkpoint(side, opposite)):
        yield f"of {checkpoint}"
    places = [*_places(side, opposite)]
    if len(places) == 1 and is_second and places[0].split()[0] in _COUNTS:
        places = [places[0].partition(" GPU")[0]]
    if places:
        yield f"on {_listed(places)}"
    if settings := [*_settings(side, opposite)]:
        yield f"with {_listed(settings)}"


def _listed(phrases: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(phrases[:-1]), phrases[-1])))


def _checkpoint(side: _Side, opposite: _Side) -> str | None:
    """The checkpoint's own name, where the opposite side has another one. Its fingerprint where names are alike."""
    if not side.facts or not opposite.facts:
        return None
    name, opposite_name = (facts.checkpoint.rstrip("/").rpartition("/")[2] for facts in (side.facts, opposite.facts))
    if name != opposite_name:
        return name
    return None if side.facts.fingerprint == opposite.facts.fingerprint else f"{name} ({side.facts.fingerprint[:8]})"


def _places(side: _Side, opposite: _Side) -> Iterator[str]:
    """Engine and hardware."""
    title = _TITLES.get(str(side.engine), str(side.engine))
    if side.engine != opposite.engine and None not in (side.engine, opposite.engine):
        yield title
    elif side.facts and opposite.facts and side.facts.version != opposite.facts.version:
        yield f"{title} {side.facts.version}"
    is_other = side.gpu != opposite.gpu and None not in (side.gpu, opposite.gpu)
    if side.gpus and opposite.gpus and side.gpus != opposite.gpus:
        count = _COUNTS[side.gpus] if side.gpus < len(_COUNTS) else str(side.gpus)
        yield f"{count} GPU{'s' * (side.gpus > 1)}" + (f" ({side.gpu})" if is_other else "")
    elif is_other:
        yield str(side.gpu)


def _settings(side: _Side, opposite: _Side) -> Iterator[str]:
    """The key-value cache, expert parallelism, model arguments and environment variables."""
    if side.cache != opposite.cache and side.cache is not None:
        short = side.cache.partition("_")[0]
        yield f"the KV cache in {side.cache if (opposite.cache or '').startswith(short) else short}"
    if side.expert_ranks > 1 and side.expert_ranks != opposite.expert_ranks:
        is_size = opposite.expert_ranks > 1 and side.gpus == opposite.gpus
        if is_size or opposite.expert_ranks == 1:
            yield f"expert parallelism{f' over {side.expert_ranks}' * is_size}"
    is_alike = side.gpus == opposite.gpus
    for name, value in side.options.items():
        if name in _COVERED or opposite.options.get(name) == value:
            continue
        if name != _TENSORS or (is_alike and value != 1):  # else the number of GPUs says it
            yield f"{name}={_typed(value)}"
    if side.settings and opposite.settings:
        variables = opposite.settings.environment
        yield from (f"{k}={v}" for k, v in side.settings.environment.items() if variables.get(k) != v)
    if side.precision == opposite.precision and side.facts and opposite.facts and _MOE not in side.options:
        backend, opposite_backend = side.facts.moe_backend_observed, opposite.facts.moe_backend_observed
        is_known = None not in (backend, opposite_backend)
        if side.engine == opposite.engine and backend != opposite_backend and is_known:
            yield f"experts on {backend}"


def _typed(value: OptionValue) -> str:
    """A value as an arm is given it."""
    if isinstance(value, tuple):
        return f"[{','.join(map(_typed, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)
