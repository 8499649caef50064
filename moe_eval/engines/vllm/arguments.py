"""What the user set, by its own name, as arguments of this version's LLM constructor."""

from __future__ import annotations

import difflib
import enum
import json
import re
import typing
from collections.abc import Mapping
from typing import Any

from moe_eval.engines.options import sizes
from moe_eval.engines.vllm.installed import Library
from moe_eval.errors import UsageError
from moe_eval.records import disk

# settings of this engine itself
OWN = ("worker", "weights", "cuda_graph_batch_sizes")
_RAW = "nothing: scores are read from raw log-probabilities"
_ONE_TOKEN = "nothing: with drafted tokens neither a step nor its experts are those of one token"
_POOLS = "nothing: this engine generates"
# vLLM's arguments that are not the user's to give, and what is
_ELSEWHERE = {
    "model": "pretrained",
    "tokenizer_mode": "tokenizer",
    "tokenizer_revision": "revision",
    "skip_tokenizer_init": "tokenizer",
    "quantization": "precision=fp8 or precision=fp8_block, or a checkpoint in the precision",
    "quantization_config": "precision=fp8 or precision=fp8_block, or a checkpoint in the precision",
    "cudagraph_capture_sizes": "cuda_graph_batch_sizes",
    "data_parallel_size": "tensor_parallel_size",
    "logprobs_mode": _RAW,
    "generation_config": "sampling arguments with --gen_kwargs: greedy has to stay greedy",
    "override_generation_config": "sampling arguments with --gen_kwargs: greedy has to stay greedy",
    "speculative_config": _ONE_TOKEN,
    **dict.fromkeys(("spec_method", "spec_model", "spec_tokens"), _ONE_TOKEN),
    **dict.fromkeys(("runner", "convert", "pooler_config"), _POOLS),
}
# how other tools and other engines spell a setting
_SPELLINGS = {
    "tp": "tensor_parallel_size",
    "tp_size": "tensor_parallel_size",
    "pp": "pipeline_parallel_size",
    "pp_size": "pipeline_parallel_size",
    "ep": "enable_expert_parallel",
    "moe_expert_parallel_size": "enable_expert_parallel",
    "max_batch_size": "max_num_seqs",
    "max_num_tokens": "max_num_batched_tokens",
    "max_seq_len": "max_model_len",
    "attn_backend": "attention_backend",
    "attn_implementation": "attention_backend",
    "kv_cache_free_gpu_memory_fraction": "gpu_memory_utilization",
    "cuda_graph_sizes": "cuda_graph_batch_sizes",
}
_TRUE, _FALSE = ("true", "on", "yes"), ("false", "off", "no")


def build(installed: Library, options: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's keyword arguments.

    Args:
        options: what the user set, by name, without `worker` and `weights`. A list may be written `1:8:32`, a
            dictionary as JSON; `moe_backend=auto` leaves the choice to vLLM, `cuda_graph_batch_sizes=none` turns graphs
            off and leaves compilation on.
        defaults: what this engine sets where the user does not, by the same names.

    Returns:
        Keyword arguments. Prefix caching is always off: it would spare a repeated prompt its prefill.

    Raises:
        UsageError: the first setting that this version does not take, with its own spelling where there is one.
    """
    _check_names(installed, options)
    asked = {**{name: value for name, value in defaults.items() if name in installed.fields}, **options}
    graphs = asked.pop("cuda_graph_batch_sizes", None)
    arguments = {name: _valued(installed, name, given) for name, given in asked.items()}
    if arguments.get("enable_prefix_caching"):
        raise UsageError(
            "enable_prefix_caching=true would spare repeated prompts the prefill that is to be measured; leave it out."
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


def plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as JSON has them, without secrets; of anything that is no JSON its text."""
    found: dict[str, Any] = disk.redact(json.loads(json.dumps(dict(arguments), default=str)))
    return found


def _check_names(installed: Library, options: Mapping[str, Any]) -> None:
    for name in options:
        if name in _ELSEWHERE:
            raise UsageError(f"{name} is not set on its own here; give {_ELSEWHERE[name]}.")
        if name in installed.fields or name in OWN:
            continue
        names = [each for each in (*installed.fields, *OWN) if each not in _ELSEWHERE]
        spelt = _SPELLINGS.get(name)
        close = [spelt] if spelt in names else difflib.get_close_matches(name, names, 1, 0.75)
        advice = f"did you mean {close[0]}?" if close else "leave it out, or use a version that has it."
        raise UsageError(f"vLLM {installed.version} has no setting {name}; {advice}")


def _valued(installed: Library, name: str, given: Any) -> Any:
    """A value as the version's own field takes it: text is read first, and kept as text where only that suits."""
    kind = installed.fields[name].type
    read = _backend(given) if name == "moe_backend" else _read(name, given, lists="list[int]" in str(kind))
    # an annotation that only its own module can read, and what a dictionary becomes, are the constructor's to judge
    if isinstance(kind, str) or isinstance(read, dict):
        return read
    members = _members(kind)
    if members and isinstance(given, str) and given.upper() in members:
        return given.upper()
    wrong = [_unsuited(kind, value) for value in (read, given)]
    if None in wrong:
        return (read, given)[wrong.index(None)]
    raise UsageError(f"{name}={given} does not suit vLLM {installed.version}: {wrong[0]}.")


def _unsuited(kind: Any, value: Any) -> str | None:
    """Why a value is not of this kind, None where it is or where only vLLM can tell."""
    from pydantic import TypeAdapter, ValidationError

    try:
        TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        return str(error.errors()[0]["msg"]).rstrip(".")
    except Exception:  # an annotation that stands only inside vLLM
        return None
    return None


def _members(kind: Any) -> tuple[str, ...]:
    """The names of an enumeration, also inside an Optional or a Union; vLLM takes them as text."""
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return tuple(kind.__members__)
    return tuple(name for each in typing.get_args(kind) for name in _members(each))


def _backend(given: Any) -> str:
    """As vLLM itself reads it."""
    name = str(given).lower().replace("-", "_")
    if name == "emulation":
        raise UsageError(
            "moe_backend=emulation computes in 16 bits what is called by a lower precision; give another moe_backend, "
            "or engine=transformers with emulate=true."
        )
    return name


def _read(name: str, given: Any, *, lists: bool) -> Any:
    """What a text says: a switch, a number, a list or JSON."""
    if not isinstance(given, str):
        return given
    text = given.strip()
    if text[:1] in ("[", "{"):
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise UsageError(f"{name}={given} is not JSON ({error}).") from None
    if lists and re.fullmatch(r"\d+(:\d+)*", text):
        return sizes(name, text)
    if text.lower() in (*_TRUE, *_FALSE):
        return text.lower() in _TRUE
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return given
