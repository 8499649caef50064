"""What the user set, by its own name, as arguments of this version's LLM constructor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from moe_eval.engines import tables
from moe_eval.engines.options import parse_json, sizes
from moe_eval.engines.served.arguments import ELSEWHERE, SPELLINGS, Arguments, check_names, first_reason, mismatch
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
    "moe_tactic": ("moe_config", "tactic"),
    "moe_megamoe_fuse_shared_expert": ("moe_config", "megamoe_fuse_shared_expert"),
}
# settings of this engine itself
OWN = ("worker", "disable_fusion", "stall_timeout")
# the constructor's arguments that the user cannot set, and what to do instead
_ELSEWHERE = {
    **ELSEWHERE,
    "backend": "Give engine.",
    "kv_cache_config": (
        "Give kv_cache_free_gpu_memory_fraction, kv_cache_max_tokens, kv_cache_dtype or kv_cache_tokens_per_block."
    ),
    "cuda_graph_config": "Give cuda_graph_batch_sizes or cuda_graph_enable_padding.",
    "moe_config": "Give moe_backend, moe_tactic, moe_max_num_tokens or moe_disable_finalize_fusion.",
    "num_postprocess_workers": "With such workers TensorRT-LLM drops the logits that scores are read from. Omit it.",
    "gather_generation_logits": "Give worker=in_process or worker=spawned.",
    "speculative_config": "TensorRT-LLM returns no context logits with speculative decoding. Omit it.",
    "force_dynamic_quantization": (
        "Give a checkpoint in the precision, because this setting would make the precision's label wrong."
    ),
    "encode_only": "Such an engine does not generate, and scores are checked against what it generates. Omit it.",
    "max_beam_width": "Beam search is not supported. Omit it.",
}
# the spellings of other tools and other versions
_SPELLINGS = {
    **SPELLINGS,
    **dict.fromkeys(("ep", "ep_size", "expert_parallel_size"), "moe_expert_parallel_size"),
    **dict.fromkeys(("free_gpu_memory_fraction", "gpu_memory_utilization"), "kv_cache_free_gpu_memory_fraction"),
    "max_model_len": "max_seq_len",
    "attn_implementation": "attn_backend",
    "use_cuda_graph": "cuda_graph_batch_sizes",
}


def check(options: Mapping[str, object]) -> None:
    """Refuse names that no version seen here takes, before one is imported."""
    check_names("TensorRT-LLM", options, tables.settings("trtllm", "tensorrt_llm"), _ELSEWHERE, _SPELLINGS)


def build(installed: Library, options: Mapping[str, object], defaults: Mapping[str, object]) -> Arguments:
    """The constructor's keyword arguments.

    Args:
        options: what the user set, by name, without OWN. A list may be written `1:8:32`, a dictionary as JSON.
            `moe_backend=auto` leaves the choice to TensorRT-LLM. `cuda_graph_batch_sizes=none` turns graphs off.
        defaults: what this engine sets if the user does not, by the same names.

    Returns:
        Keyword arguments, nested configs as the library's own objects. Block reuse is always off: reused blocks return
        no logits, and they would skip the prefill that is to be timed.
    """
    here, accepted = f"TensorRT-LLM {installed.version}", (*installed.fields, *NESTED, *OWN)
    check_names(here, options, accepted, _ELSEWHERE, _SPELLINGS)
    for name in options:
        if name in NESTED and not takes(installed, name):
            raise UsageError(f"{here} has no {'.'.join(NESTED[name])}, which {name} sets. Omit it.")
    settings = {**{name: value for name, value in defaults.items() if takes(installed, name)}, **options}
    arguments = {name: _validated(installed, name, value) for name, value in settings.items() if name not in NESTED}
    for config, fields in _nested(installed, settings).items():
        arguments[config] = None if fields is None else _config(installed, config, fields)
    return arguments


def _nested(installed: Library, settings: Mapping[str, object]) -> Mapping[str, dict[str, object] | None]:
    """The fields of every nested config. None turns what it configures off."""
    nested: dict[str, dict[str, object] | None] = {
        "kv_cache_config": {"enable_block_reuse": False},
        "cuda_graph_config": {},
    }
    for name, value in settings.items():
        if name not in NESTED or (name == "moe_backend" and str(value).lower() == "auto"):
            continue
        config, field = NESTED[name]
        fields = nested.setdefault(config, {})
        if name == "cuda_graph_batch_sizes" and str(value).lower() in ("none", "off", "0", "false"):
            nested[config] = None
        elif fields is None:
            continue
        elif name == "moe_backend":
            fields[field] = _moe_backend(installed, value)
        else:
            fields[field] = sizes(name, value) if name == "cuda_graph_batch_sizes" else value
    return nested


def takes(installed: Library, name: str) -> bool:
    """Whether this version takes the setting."""
    if name in NESTED:
        config, field = NESTED[name]
        return config in installed.fields and field in installed.configs[config].model_fields
    return name in installed.fields and name not in _ELSEWHERE


def plain(arguments: Arguments) -> dict[str, object]:
    """Arguments as JSON: of a nested config the fields that were set, of other objects their text."""

    def as_json(value: Any) -> str:
        if hasattr(value, "model_dump_json"):
            return str(value.model_dump_json(exclude_unset=True))
        return json.dumps(value, default=str)

    return {name: json.loads(as_json(value)) for name, value in arguments.items()}


def _validated(installed: Library, name: str, setting: object) -> object:
    """A top-level value as the version's own field takes it."""
    value = parse_json(name, setting) if isinstance(setting, str) and setting[:1] in "[{" else setting
    reason = mismatch(installed.fields[name].annotation, value)
    if reason is not None:
        raise UsageError(f"{name}={setting} does not suit TensorRT-LLM {installed.version}: {reason}.")
    return value


def _config(installed: Library, config: str, fields: Mapping[str, object]) -> Any:
    from pydantic import ValidationError

    try:
        return installed.configs[config](**fields)
    except ValidationError as error:
        wrong = next((str(part) for part in error.errors()[0]["loc"]), config)
        options = {path: name for name, path in NESTED.items()}
        name = options.get((config, wrong), f"{config}.{wrong}")
        raise UsageError(
            f"{name}={fields.get(wrong)} does not suit TensorRT-LLM {installed.version}: {first_reason(error)}."
        ) from None


def _moe_backend(installed: Library, requested: object) -> str:
    name = str(requested).upper()
    if installed.moe_backends and name not in installed.moe_backends:
        backends = ", ".join(("auto", *(backend for backend in installed.moe_backends if backend != "AUTO")))
        raise UsageError(f"TensorRT-LLM {installed.version} has no moe_backend {requested}. Choose {backends}.")
    return name
