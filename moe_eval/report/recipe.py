"""The suggestion of `moe-eval sensitivity` as a recipe that llm-compressor reads."""

from __future__ import annotations

from moe_eval.records.sensitivity import LayerSensitivity, SensitivityRecord

# presets of compressed-tensors, with static scales of activations but for blocks
_SCHEMES = {"fp8": "FP8", "fp8_block": "FP8_BLOCK", "nvfp4": "NVFP4"}


def recipe(record: SensitivityRecord, labels: str) -> str | None:
    """The YAML text of a recipe, or None where no layer keeps the bound.

    A QuantizationModifier's `targets` and `ignore` are regular expressions after `re:`, which have to match from the
    beginning of a module's name on: docs.vllm.ai/projects/llm-compressor. All routed experts are targets, and the
    layers that are left out are ignored.

    Args:
        labels: of the measurement, which become a comment.
    """
    import yaml

    suggestion = record.figures.suggestion
    if not suggestion.layers:
        return None
    layers = sorted(record.figures.layers, key=lambda layer: layer.layer)
    modifier = {
        "targets": list(dict.fromkeys(_pattern(layer, r"\d+") for layer in layers)),
        "ignore": ["lm_head", *(_pattern(layer) for layer in layers if layer.layer in suggestion.excluded)],
        "scheme": _SCHEMES[record.precision],
    }
    content = {"default_stage": {"default_modifiers": {"QuantizationModifier": modifier}}}
    comment = "".join(f"# {line}\n" for line in labels.splitlines())
    return comment + str(yaml.safe_dump(content, sort_keys=False, width=1000))


def _pattern(layer: LayerSensitivity, index: str | None = None) -> str:
    """The linear layers of a layer's experts. `index` stands for its number.

    What lies between a layer and its experts has other names in other versions of Transformers.
    """
    before, _, after = layer.module.partition(f".{layer.layer}.")
    layers, experts = before.rpartition(".")[2], after.rpartition(".")[2]
    return rf"re:.*\b{layers}\.{index or layer.layer}\.(.*\.)?{experts}\.\d+\..*"
