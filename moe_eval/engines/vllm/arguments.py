"""What the user set, by its own name, as arguments of this version's LLM constructor."""

from __future__ import annotations

import enum
import json
import re
import typing
from collections.abc import Mapping
from typing import Any

from moe_eval.engines import tables
from moe_eval.engines.options import parse_json, sizes
from moe_eval.engines.served.arguments import ELSEWHERE, SPELLINGS, Arguments, check_names, mismatch
from moe_eval.engines.vllm.installed import Library
from moe_eval.errors import UsageError
from moe_eval.records import disk

# settings of this engine itself
OWN = ("worker", "weights", "cuda_graph_batch_sizes", "stall_timeout")
_QUANTISATION = "Give precision=fp8 or precision=fp8_block, or a checkpoint in the precision."
_ONE_TOKEN = "With drafted tokens neither a step nor its experts are those of one token. Omit it."
_POOLS = "moe_eval needs an engine that generates. Omit it."
# vLLM's arguments that the user cannot set, and what to do instead
_ELSEWHERE = {
    **ELSEWHERE,
    "quantization": _QUANTISATION,
    "quantization_config": _QUANTISATION,
    "cudagraph_capture_sizes": "Give cuda_graph_batch_sizes.",
    "data_parallel_size": "Give tensor_parallel_size.",
    "logprobs_mode": "Scores are read from raw log-probabilities. Omit it.",
    "override_generation_config": ELSEWHERE["generation_config"],
    "worker_extension_cls": "Its place is taken by what tells the labels of every rank. Omit it.",
    "speculative_config": _ONE_TOKEN,
    **dict.fromkeys(("spec_method", "spec_model", "spec_tokens"), _ONE_TOKEN),
    **dict.fromkeys(("runner", "convert", "pooler_config"), _POOLS),
}
# the spellings of other tools and other engines
_SPELLINGS = {
    **SPELLINGS,
    **dict.fromkeys(("ep", "moe_expert_parallel_size"), "enable_expert_parallel"),
    "max_batch_size": "max_num_seqs",
    "max_num_tokens": "max_num_batched_tokens",
    "max_seq_len": "max_model_len",
    **dict.fromkeys(("attn_backend", "attn_implementation"), "attention_backend"),
    "kv_cache_free_gpu_memory_fraction": "gpu_memory_utilization",
    "cuda_graph_sizes": "cuda_graph_batch_sizes",
}
_TRUE, _FALSE = ("true", "on", "yes"), ("false", "off", "no")


def check(options: Mapping[str, object]) -> None:
    """Refuse names that no version seen here takes, before one is imported."""
    check_names("vLLM", options, tables.settings("vllm", "vllm"), _ELSEWHERE, _SPELLINGS)


def build(installed: Library, options: Mapping[str, object], defaults: Mapping[str, object]) -> Arguments:
    """The constructor's keyword arguments.

    Args:
        options: what the user set, by name, without `worker` and `weights`. A list may be written `1:8:32`, a
            dictionary as JSON. `moe_backend=auto` leaves the choice to vLLM. `cuda_graph_batch_sizes=none` turns graphs
            off and leaves compilation on.
        defaults: what this engine sets if the user does not, by the same names.

    Returns:
        Keyword arguments. Prefix caching is always off: it would skip the prefill that is to be timed.
    """
    check_names(f"vLLM {installed.version}", options, (*installed.fields, *OWN), _ELSEWHERE, _SPELLINGS)
    settings = {**{name: value for name, value in defaults.items() if name in installed.fields}, **options}
    graphs = settings.pop("cuda_graph_batch_sizes", None)
    arguments = {name: _validated(installed, name, value) for name, value in settings.items()}
    if arguments.get("enable_prefix_caching"):
        raise UsageError(
            "enable_prefix_caching=true would skip the prefill of repeated prompts, which is to be measured. Omit it."
        )
    arguments["enable_prefix_caching"] = False
    if arguments.get("moe_backend") == "auto":
        del arguments["moe_backend"]
    if str(graphs).lower() in ("none", *_FALSE, "0") and graphs is not None:
        compilation = arguments.get("compilation_config") or {}
        arguments["compilation_config"] = {
            **(compilation if isinstance(compilation, dict) else {"mode": compilation}),
            "cudagraph_mode": "NONE",
        }
    elif graphs is not None:
        arguments["cudagraph_capture_sizes"] = sizes("cuda_graph_batch_sizes", graphs)
    return arguments


def plain(arguments: Arguments) -> dict[str, object]:
    """Arguments as JSON, without secrets: of objects that are no JSON their text."""
    labels: dict[str, object] = disk.redact(json.loads(json.dumps(dict(arguments), default=str)))
    return labels


def _validated(installed: Library, name: str, setting: Any) -> Any:
    """A value as the version's own field takes it: parsed from text if that suits, else the text itself."""
    kind: Any = installed.fields[name].type
    value = _backend(setting) if name == "moe_backend" else _parsed(name, setting, lists="list[int]" in str(kind))
    # only the constructor can judge an annotation that only its own module resolves, and a dictionary
    if isinstance(kind, str) or isinstance(value, dict):
        return value
    members = _members(kind)
    if members and isinstance(setting, str) and setting.upper() in members:
        return setting.upper()
    reasons = [mismatch(kind, candidate) for candidate in (value, setting)]
    if None in reasons:
        return (value, setting)[reasons.index(None)]
    raise UsageError(f"{name}={setting} does not suit vLLM {installed.version}: {reasons[0]}.")


def _members(kind: Any) -> tuple[str, ...]:
    """The names of an enumeration, also inside an Optional or a Union. vLLM takes them as text."""
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return tuple(kind.__members__)
    return tuple(name for part in typing.get_args(kind) for name in _members(part))


def _backend(requested: object) -> str:
    """As vLLM itself reads it."""
    name = str(requested).lower().replace("-", "_")
    if name == "emulation":
        raise UsageError(
            "moe_backend=emulation computes in 16 bits, whatever the precision is called. Give another moe_backend, or "
            "engine=transformers with emulate=true."
        )
    return name


def _parsed(name: str, setting: Any, *, lists: bool) -> Any:
    """The switch, number, list or JSON that a text holds, else the text."""
    if not isinstance(setting, str):
        return setting
    text = setting.strip()
    if text[:1] in ("[", "{"):
        return parse_json(name, text)
    if lists and re.fullmatch(r"\d+(:\d+)*", text):
        return sizes(name, text)
    if text.lower() in (*_TRUE, *_FALSE):
        return text.lower() in _TRUE
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return setting
