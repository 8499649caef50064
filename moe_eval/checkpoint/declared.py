"""What a quantisation declaration of a checkpoint's settings says of every module.

Formats: NVIDIA Model-Optimizer's hf_quant_config.json and its form inside config.json, compressed-tensors'
QuantizationConfig, and the quantization_config of Transformers' own methods.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from moe_eval.checkpoint import module_patterns as patterns
from moe_eval.checkpoint.precision import WEIGHT_ONLY
from moe_eval.errors import UsageError
from moe_eval.frozen import frozen


@frozen
class Form:
    """How weights are held and multiplied.

    Attributes:
        precision: one of precision.LABELS. None for a form that has no name there.
        name: as the tool has it, such as `float-8-tensor`.
    """

    precision: str | None
    name: str


@frozen
class Declaration:
    """A declaration, as rules by the names of modules.

    Attributes:
        tool: that wrote it, such as `modelopt`.
        name: of everything that is quantised, such as `modelopt FP8`.
        rules: of which the first that holds for a module counts. A module of none is not quantised.
        excluded: patterns of modules that are not quantised, as they stand. `is_excluded`: whether one holds.
        kv_cache: the precision of the key-value cache. None where it is not quantised.
        algorithms: of modules by name, for mixed precision.
    """

    tool: str
    name: str
    rules: tuple[tuple[Callable[[str], bool], Form], ...]
    excluded: tuple[str, ...] = ()
    is_excluded: Callable[[str], bool] = lambda module: False
    kv_cache: str | None = None
    algorithms: Mapping[str, str] | None = None

    def form(self, names: Sequence[str]) -> Form | None:
        """How a module is held, given by the names that it may have. None where it is not quantised."""
        if any(map(self.is_excluded, names)):
            return None
        return next((form for name in names for matches, form in self.rules if matches(name)), None)


def read(declared: Mapping[str, object], file: str) -> Declaration:
    """Read a declaration.

    Args:
        file: it stands in, for errors.

    Raises:
        UsageError: a part of it has another form than its tool writes.
    """
    method = str(declared.get("quant_method") or "").strip().lower()
    producer = declared.get("producer")
    is_modelopt = isinstance(producer, Mapping) and producer.get("name") == "modelopt"
    if method.startswith("modelopt") or is_modelopt or (not method and "quant_algo" in declared):
        return _modelopt(declared, file)
    if method == "compressed-tensors" or (not method and "config_groups" in declared):
        return _compressed(declared, file)
    if method == "fp8":
        return _hugging_face_fp8(declared, file)
    return _by_name(declared, method, file)


# quantisations whose name is their precision, as gpt-oss has it
_INLINE = ("mxfp4", "mxfp8", "nvfp4")


def _by_name(declared: Mapping[str, object], method: str, file: str) -> Declaration:
    """A method of which only the name is read, with its bits where it states them."""
    bits = declared.get("bits") or declared.get("w_bit")
    bits = bits or (4 if declared.get("load_in_4bit") else 8 if declared.get("load_in_8bit") else None)
    name = method or "unnamed"
    if isinstance(bits, int) and method not in _INLINE:
        name = f"int{bits} ({name})"
    excluded = _texts(declared, "modules_to_not_convert")
    form = Form(method if method in _INLINE else None, name)
    return Declaration(method, name, ((patterns.everything, form),), excluded, patterns.under(excluded, file))


def _hugging_face_fp8(declared: Mapping[str, object], file: str) -> Declaration:
    """Transformers' FineGrainedFP8Config, and the form without blocks that vLLM and AutoFP8 write."""
    excluded = (*_texts(declared, "modules_to_not_convert"), *_texts(declared, "ignored_layers"))
    blocks = declared.get("weight_block_size")
    if blocks is None:
        scheme = declared.get("activation_scheme")
        form = Form("fp8", f"fp8 {scheme}" if scheme else "fp8")
    else:
        sizes = _numbers(blocks, f"{file}: weight_block_size")
        form = Form("fp8_block" if sizes == [128, 128] else None, f"fp8 with blocks of {sizes}")
    return Declaration("fp8", form.name, ((patterns.everything, form),), excluded, patterns.under(excluded, file))


_MODELOPT = {
    "FP8": "fp8",
    "FP8_PB_WO": "fp8_block",
    "FP8_BLOCK_SCALES": "fp8_block",
    "FP8_PER_CHANNEL_PER_TOKEN": "fp8_channel",
    "NVFP4": "nvfp4",
    "MXFP8": "mxfp8",
    "W4A16_NVFP4": "nvfp4-w4a16",
    "NVFP4_W4A16": "nvfp4-w4a16",
    "W4A8_MXFP4_FP8": None,
}


def _modelopt(declared: Mapping[str, object], file: str) -> Declaration:
    nested = declared.get("quantization")
    declared = nested if isinstance(nested, Mapping) else declared
    kind = str(declared.get("quant_algo") or "NO_QUANT")
    cache = declared.get("kv_cache_quant_algo") or declared.get("kv_cache_scheme")
    excluded = (*_texts(declared, "exclude_modules"), *_texts(declared, "ignore"))
    is_excluded = patterns.globs(excluded, file)
    kv_cache = _cache(cache)
    if kind in ("NO_QUANT", "None"):
        return Declaration("modelopt", "none", (), excluded, is_excluded, kv_cache)
    if kind != "MIXED_PRECISION":
        form = Form(_MODELOPT.get(kind.upper()), f"modelopt {kind}")
        return Declaration("modelopt", form.name, ((patterns.everything, form),), excluded, is_excluded, kv_cache)
    layers = declared.get("quantized_layers")
    modules = layers.items() if isinstance(layers, Mapping) else ()
    algorithms = {str(name): str(module.get("quant_algo")) for name, module in modules if isinstance(module, Mapping)}
    rules = tuple(
        (
            patterns.exactly_or_under(name for name in algorithms if algorithms[name] == algorithm),
            Form(_MODELOPT.get(algorithm.upper()), algorithm),
        )
        for algorithm in dict.fromkeys(algorithms.values())
    )
    return Declaration("modelopt", "modelopt MIXED_PRECISION", rules, excluded, is_excluded, kv_cache, algorithms)


def _compressed(declared: Mapping[str, object], file: str) -> Declaration:
    groups = declared.get("config_groups")
    if groups is not None and not isinstance(groups, Mapping):
        raise UsageError(f"{file}: config_groups is no object. Copy the checkpoint again.")
    rules: list[tuple[Callable[[str], bool], Form]] = []
    for name, group in (groups or {}).items():
        if not isinstance(group, Mapping):
            raise UsageError(
                f"{file}: config_groups names the preset {name}, which no engine reads in a checkpoint. "
                "Save the checkpoint again with a newer compressed-tensors, which writes its settings."
            )
        targets = _texts(group, "targets") or ("Linear",)
        rules.append((patterns.targets(targets, file), _compressed_form(group, file)))
    names = ", ".join(dict.fromkeys(form.name for _, form in rules)) or str(declared.get("format"))
    ignored = _texts(declared, "ignore")
    is_ignored = patterns.targets(ignored, file)
    cache = _cache(declared.get("kv_cache_scheme"))
    return Declaration("compressed-tensors", f"compressed-tensors {names}", tuple(rules), ignored, is_ignored, cache)


# type, bits and strategy of the weights
_COMPRESSED: dict[tuple[object, object, object], str] = {
    ("float", 8, "tensor"): "fp8",
    ("float", 8, "channel"): "fp8_channel",
    ("float", 8, "block"): "fp8_block",
    ("float", 4, "tensor_group"): "nvfp4",
    ("float", 4, "group"): "mxfp4",
}
_GROUP_SIZES = {"nvfp4": 16, "mxfp4": 32}


def _compressed_form(group: Mapping[str, object], file: str) -> Form:
    weights, activations = group.get("weights"), group.get("input_activations")
    if not isinstance(weights, Mapping):
        return Form(None, "no weights")
    kind, bits, strategy, size = (_scalar(weights, key) for key in ("type", "num_bits", "strategy", "group_size"))
    if strategy is None:  # the library infers it
        strategy = "tensor" if size is None else "channel" if size == -1 else "group"
    name = "-".join(map(str, (kind, bits, strategy)))
    precision = _COMPRESSED.get((kind, bits, strategy))
    blocks = weights.get("block_structure")
    if precision == "fp8_block" and blocks is not None:
        sizes = blocks.split("x") if isinstance(blocks, str) else blocks
        numbers = _numbers(sizes, f"{file}: block_structure")
        name += "" if numbers == [128, 128] else f" with blocks of {numbers}"
        precision = precision if numbers == [128, 128] else None
    if (kind, bits, strategy, size) == ("float", 8, "group", 32):
        precision = "mxfp8"
    if size is not None and _GROUP_SIZES.get(str(precision), size) != size:
        precision, name = None, f"{name} of {size}"
    if "input_activations" in group and activations is None:
        return Form(WEIGHT_ONLY.get(str(precision)), f"{name}, weights alone")
    if isinstance(activations, Mapping) and activations.get("num_bits", bits) != bits:
        return Form(None, f"{name} with {activations.get('type')}-{activations.get('num_bits')} activations")
    return Form(precision, name)


def _cache(scheme: object) -> str | None:
    """The precision of a key-value cache: as text, or as a scheme with a type and bits."""
    if isinstance(scheme, str):
        return scheme.lower() if scheme.upper() not in ("NONE", "NO_QUANT") else None
    if not isinstance(scheme, Mapping):
        return None
    bits, kind = scheme.get("num_bits", 8), scheme.get("type", "float")
    names = {("float", 8): "fp8", ("float", 4): "nvfp4"}
    return names.get((str(kind), bits if isinstance(bits, int) else 0), f"{kind}{bits}")


def _scalar(declared: Mapping[str, object], key: str) -> object:
    """A setting that is no list and no object. None for those."""
    value = declared.get(key)
    return value if isinstance(value, (str, int, float)) else None


def _texts(declared: Mapping[str, object], key: str) -> tuple[str, ...]:
    value = declared.get(key)
    return tuple(map(str, value)) if isinstance(value, (list, tuple)) else ()


def _numbers(value: object, place: str) -> list[int]:
    try:
        return [int(number) for number in value]  # type: ignore[attr-defined]
    except (TypeError, ValueError, OverflowError):
        raise UsageError(f"{place} is no list of sizes. Copy the checkpoint again.") from None
