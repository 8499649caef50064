"""What LLM reads of a checkpoint before any worker starts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .versions import Version

_BY_METHOD = {"fp8": "FP8_BLOCK_SCALES", "mxfp4": "W4A16_MXFP4", "mxfp8": "MXFP8", "nvfp4": "NVFP4"}


@dataclass
class QuantConfig:
    """What the checkpoint says of its quantisation."""

    quant_algo: str | None = None
    kv_cache_quant_algo: str | None = None
    exclude_modules: list[str] | None = None


def configuration(model: str | Path, revision: str | None) -> dict[str, Any]:
    """config.json's content; read plainly where the model is a folder, which spares the caller an import."""
    file = Path(model) / "config.json"
    if file.is_file():
        found: dict[str, Any] = json.loads(file.read_text())
        if "max_position_embeddings" in found:
            return found
    from transformers import AutoConfig

    return dict(AutoConfig.from_pretrained(model, revision=revision).to_dict())


def quantisation(folder: Path, version: Version, config: dict[str, Any]) -> QuantConfig:
    """Read hf_quant_config.json, else config.json's entry; a method the version does not read is refused."""
    modelopt = folder / "hf_quant_config.json"
    if modelopt.is_file():
        found = json.loads(modelopt.read_text())["quantization"]
        algo = "FP8_BLOCK_SCALES" if found.get("quant_algo") == "fp8_pb_wo" else found.get("quant_algo")
        return QuantConfig(algo, found.get("kv_cache_quant_algo"), found.get("exclude_modules"))
    entry = config.get("quantization_config")
    if not entry:
        return QuantConfig()
    method = entry.get("quant_method")
    if method not in version.quant_methods:
        raise ValueError(f"quantization_config with quant_method {method!r} is not supported")
    if method == "fp8" and tuple(entry.get("weight_block_size") or ()) != (128, 128):
        raise AssertionError(f"FP8 blocks of {entry.get('weight_block_size')}, only (128, 128) is supported")
    algo = entry.get("quant_algo") or _BY_METHOD.get(method)
    if method == "compressed-tensors":
        weights = next(iter(entry.get("config_groups", {}).values()), {}).get("weights", {})
        blocks = weights.get("strategy") in ("block", "group")
        algo = "FP8_BLOCK_SCALES" if blocks else "FP8_PER_CHANNEL_PER_TOKEN"
    return QuantConfig(algo, None, entry.get("modules_to_not_convert") or entry.get("ignore"))
