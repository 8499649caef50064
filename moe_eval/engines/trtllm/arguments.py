"""What the user set, by its own name, as arguments of this version's LLM constructor."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import Any

from moe_eval.engines.options import sizes
from moe_eval.engines.trtllm.installed import Library
from moe_eval.errors import UsageError

# settings that live inside a nested config of the constructor
NESTED = {
    "kv_cache_free_gpu_memory_fraction": ("kv_cache_config", "free_gpu_memory_fraction"),
    "kv_cache_max_tokens": ("kv_cache_config", "max_tokens"),
    "kv_cache_dtype": ("kv_cache_config", "dtype"),
    "kv_cache_tokens_per_block": ("kv_cache_config", "tokens_per_block"),
    "cuda_graph_batch_sizes": ("cuda_graph_config", "batch_sizes"),
    "cuda_graph_enable_padding": ("cuda_graph_config", "enable_padding"),
    "moe_backend": ("moe_config", "backend"),
    "moe_max_num_tokens": ("moe_config", "max_num_tokens"),
    "moe_disable_finalize_fusion": ("moe_config", "disable_finalize_fusion"),
}
# settings of this engine itself
OWN = ("worker", "disable_fusion")
# the constructor's arguments that are not the user's to give, and what is
_ELSEWHERE = {
    "model": "pretrained",
    "tokenizer_mode": "tokenizer",
    "tokenizer_revision": "revision",
    "skip_tokenizer_init": "tokenizer",
    "backend": "engine",
    "kv_cache_config": (
        "kv_cache_free_gpu_memory_fraction, kv_cache_max_tokens, kv_cache_dtype or kv_cache_tokens_per_block"
    ),
    "cuda_graph_config": "cuda_graph_batch_sizes or cuda_graph_enable_padding",
    "moe_config": "moe_backend, moe_max_num_tokens or moe_disable_finalize_fusion",
    "num_postprocess_workers": "nothing: with such workers TensorRT-LLM drops the logits that scores are read from",
    "gather_generation_logits": "worker=in_process or worker=spawned",
    "speculative_config": "nothing: TensorRT-LLM returns no context logits with speculative decoding",
    "generation_config": "sampling arguments with --gen_kwargs: greedy has to stay greedy",
    "force_dynamic_quantization": "a checkpoint in the precision: this one would compute in another than its label",
    "max_beam_width": "nothing: beam search is not supported",
}
# how other tools and other versions spell a setting
_SPELLINGS = {
    "tp": "tensor_parallel_size",
    "tp_size": "tensor_parallel_size",
    "pp": "pipeline_parallel_size",
    "pp_size": "pipeline_parallel_size",
    "ep": "moe_expert_parallel_size",
    "ep_size": "moe_expert_parallel_size",
    "expert_parallel_size": "moe_expert_parallel_size",
    "free_gpu_memory_fraction": "kv_cache_free_gpu_memory_fraction",
    "gpu_memory_utilization": "kv_cache_free_gpu_memory_fraction",
    "max_model_len": "max_seq_len",
    "attn_implementation": "attn_backend",
    "use_cuda_graph": "cuda_graph_batch_sizes",
}


def build(installed: Library, options: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's keyword arguments.

    Args:
        options: what the user set, by name, without OWN. A list may be written `1:8:32`, a dictionary as JSON;
            `moe_backend=auto` leaves the choice to TensorRT-LLM, `cuda_graph_batch_sizes=none` turns graphs off.
        defaults: what this engine sets where the user does not, by the same names.

    Returns:
        Keyword arguments, nested configs as the library's own objects. Prefix (block) reuse is always off: cached
        blocks would be missing from the logits of a prompt and would spare a repeated prompt its prefill.

    Raises:
        UsageError: the first setting that this version does not take, with its own spelling where there is one.
    """
    _check_names(installed, options)
    asked = {**{name: value for name, value in defaults.items() if known(installed, name)}, **options}
    arguments: dict[str, Any] = {}
    nested: dict[str, dict[str, Any] | None] = {
        "kv_cache_config": {"enable_block_reuse": False},
        "cuda_graph_config": {},
    }
    for name, given in asked.items():
        if name not in NESTED:
            arguments[name] = _valued(installed, name, given)
            continue
        config, field = NESTED[name]
        if name == "moe_backend":
            if str(given).lower() != "auto":
                nested["moe_config"] = {**(nested.get("moe_config") or {}), field: _moe_backend(installed, given)}
        elif name == "cuda_graph_batch_sizes" and str(given).lower() in ("none", "off", "0", "false"):
            nested[config] = None
        elif nested.get(config, {}) is not None:
            value = sizes(name, given) if name == "cuda_graph_batch_sizes" else given
            nested[config] = {**(nested.get(config) or {}), field: value}
    for config, fields in nested.items():
        arguments[config] = None if fields is None else _config(installed, config, fields)
    return arguments


def known(installed: Library, name: str) -> bool:
    """Whether this version takes the setting."""
    if name in NESTED:
        config, field = NESTED[name]
        return config in installed.fields and field in installed.configs[config].model_fields
    return name in installed.fields and name not in _ELSEWHERE


def plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as JSON has them: of a nested config what was set, of anything else that is no JSON its text."""
    shown: dict[str, Any] = {}
    for name, value in arguments.items():
        if hasattr(value, "model_dump"):
            shown[name] = json.loads(value.model_dump_json(exclude_unset=True))
        else:
            shown[name] = json.loads(json.dumps(value, default=str))
    return shown


def _check_names(installed: Library, options: Mapping[str, Any]) -> None:
    for name in options:
        if known(installed, name):
            continue
        here = f"TensorRT-LLM {installed.version}"
        if name in _ELSEWHERE:
            raise UsageError(f"{name} is not set on its own here; give {_ELSEWHERE[name]}.")
        if name in NESTED:
            config, field = NESTED[name]
            raise UsageError(f"{here} has no {config}.{field}, which is {name} here; leave it out.")
        names = [each for each in (*installed.fields, *NESTED, *OWN) if each not in _ELSEWHERE]
        close = [_SPELLINGS[name]] if name in _SPELLINGS else difflib.get_close_matches(name, names, 1, 0.75)
        advice = f"did you mean {close[0]}?" if close else "leave it out, or use a version that has it."
        raise UsageError(f"{here} has no setting {name}; {advice}")


def _valued(installed: Library, name: str, given: Any) -> Any:
    """A top-level value as the version's own field takes it."""
    from pydantic import TypeAdapter, ValidationError

    value = given
    if isinstance(given, str) and given[:1] in "[{":
        try:
            value = json.loads(given)
        except json.JSONDecodeError as error:
            raise UsageError(f"{name}={given} is not JSON ({error}).") from None
    try:
        TypeAdapter(installed.fields[name].annotation).validate_python(value)
    except ValidationError as error:
        raise UsageError(f"{name}={given} does not suit TensorRT-LLM {installed.version}: {_first(error)}.") from None
    except Exception:  # an annotation that stands only inside its own model: the constructor will judge
        return value
    return value


def _config(installed: Library, config: str, fields: Mapping[str, Any]) -> Any:
    from pydantic import ValidationError

    spelt = {field: name for name, (of, field) in NESTED.items() if of == config}
    try:
        return installed.configs[config](**fields)
    except ValidationError as error:
        wrong = next((str(part) for part in error.errors()[0]["loc"]), config)
        name = spelt.get(wrong, f"{config}.{wrong}")
        raise UsageError(
            f"{name}={fields.get(wrong)} does not suit TensorRT-LLM {installed.version}: {_first(error)}."
        ) from None


def _first(error: Any) -> str:
    return str(error.errors()[0]["msg"]).rstrip(".")


def _moe_backend(installed: Library, given: Any) -> str:
    name = str(given).upper()
    if installed.moe_backends and name not in installed.moe_backends:
        there = ", ".join(("auto", *(each for each in installed.moe_backends if each != "AUTO")))
        raise UsageError(f"TensorRT-LLM {installed.version} has no moe_backend {given}; it has {there}.")
    return name
