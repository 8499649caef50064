"""What the headers of a checkpoint's safetensors files say of its experts: types and scales, without their values.

Format: https://huggingface.co/docs/safetensors, a JSON object behind its length in 8 bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import msgspec

from moe_eval.checkpoint.contents import AGAIN
from moe_eval.errors import UsageError
from moe_eval.frozen import frozen
from moe_eval.outside import files

LONGEST_HEADER = 100_000_000  # bytes, as the library has it
_ROUTED = re.compile(r"(?:^|\.)experts\.")
_SCALES = ("weight_scale_inv", "weight_scale", "weight_scale_2", "weight_global_scale", "scales", "qzeros", "absmax")


class _Tensor(msgspec.Struct):
    dtype: str
    shape: tuple[int, ...]


_HEADER, _TENSOR = msgspec.json.Decoder(dict[str, msgspec.Raw]), msgspec.json.Decoder(_Tensor)
Tensor = tuple[str, tuple[int, ...]]  # the type as safetensors names it, and the shape


@frozen
class Header:
    """Tensors of a checkpoint by module and their name in it."""

    modules: Mapping[str, Mapping[str, Tensor]]

    @cached_property
    def experts(self) -> list[str]:
        """The modules of routed experts, such as `model.layers.0.mlp.experts.0.up_proj`, in order."""
        return [module for module in self.modules if is_routed(module)]

    @property
    def plain_dtype(self) -> str | None:
        """Torch's name of the type of norms, which no tool quantises. None without one."""
        norms = (tensors.get("weight") for module, tensors in self.modules.items() if "norm" in module)
        types = {norm[0] for norm in norms if norm and len(norm[1]) == 1}
        names = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
        return names.get(types.pop()) if len(types) == 1 else None

    def held(self, module: str) -> str | None:
        """How a module of experts is held: a precision, `int`, or None where its tensors do not tell."""
        parts = self.modules[module]
        weight = parts.get("weight") or parts.get("weight_packed") or parts.get("qweight") or parts.get("blocks")
        if weight is None:
            return None
        dtype, shape = weight
        scale = next((parts[name] for name in _SCALES if name in parts), None)
        if dtype in ("BF16", "F16", "F32"):
            return {"BF16": "bf16", "F16": "fp16", "F32": "fp32"}[dtype] if scale is None else None
        if dtype in ("I32", "I8", "I64"):
            return "int"
        if dtype.startswith("F8_E4M3"):
            return _eight_bits(shape, scale)
        if dtype in ("U8", "F4") and scale is not None:
            return {"F8_E4M3": "nvfp4", "U8": "mxfp4", "F8_E8M0": "mxfp4"}.get(scale[0])
        return None


def _eight_bits(shape: tuple[int, ...], scale: tuple[str, tuple[int, ...]] | None) -> str | None:
    """The precision of weights in FP8, by the shape of their scales."""
    if scale is None:
        return None
    dtype, sizes = scale
    if dtype in ("U8", "F8_E8M0") and len(sizes) == len(shape) > 0 and sizes[-1] * 32 == shape[-1]:
        return "mxfp8"
    if sum(size > 1 for size in sizes) == 0:
        return "fp8"
    rows = shape[-2] if len(shape) > 1 else 1
    if sizes[0] == rows and (len(sizes) == 1 or sizes[1] == 1):
        return "fp8_channel"
    blocks = [-(-size // 128) for size in shape[-2:]]
    return "fp8_block" if list(sizes[-2:]) == blocks else None


def is_routed(module: str) -> bool:
    """Whether a module is of experts that a router chooses from."""
    return _ROUTED.search(module) is not None and "shared_expert" not in module


_FUSED = re.compile(r"(.*\.experts\.\w+?)_(blocks|scales|bias|scale_inv|weight_scale|weight_scale_2|input_scale)")


def _place(tensor: str) -> tuple[str, str]:
    """The module that holds a tensor, and the tensor's name in it. Experts in one tensor are a module."""
    module, _, name = tensor.rpartition(".")
    if not module.endswith(".experts"):
        return module, name
    fused = _FUSED.fullmatch(tensor)
    return (fused[1], fused[2]) if fused else (tensor, "weight")


def read(folder: Path) -> Header | None:
    """Read the headers of a folder's safetensors files. None where there is none.

    Raises:
        UsageError: a header is damaged.
    """
    modules: dict[str, dict[str, Tensor]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        for tensor, (dtype, shape) in _read(file).items():
            module, name = _place(tensor)
            modules.setdefault(module, {})[name] = (dtype, shape)
    return Header(modules) if modules else None


def _read(file: Path) -> dict[str, Tensor]:
    with files.opened(file, AGAIN) as content:
        start = content.read(8)
        length = int.from_bytes(start, "little")
        text = content.read(length) if len(start) == 8 and length <= LONGEST_HEADER else b""
    if not text or len(text) < length:
        raise UsageError(f"{file} is corrupt or cut short. {AGAIN}")
    try:
        header = _HEADER.decode(text)  # there may be 100,000 tensors
        header.pop("__metadata__", None)
        tensors = {name: _TENSOR.decode(tensor) for name, tensor in header.items()}
    except RecursionError:
        raise UsageError(f"{file} is corrupt or cut short (it is nested too deeply). {AGAIN}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} is corrupt or cut short ({error}). {AGAIN}") from None
    return {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
