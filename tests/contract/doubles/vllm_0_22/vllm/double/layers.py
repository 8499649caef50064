"""Layers with the names and attributes of vLLM's, and FP8 by quantise-dequantise arithmetic."""

from __future__ import annotations

import re
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from ..model_executor.model_loader.reload.layerwise import initialize_online_processing


class UnquantizedMoeBackend(Enum):
    FLASHINFER_TRTLLM = "FlashInfer TRTLLM"
    FLASHINFER_CUTLASS = "FlashInfer CUTLASS"
    TRITON = "TRITON"


class Fp8MoeBackend(Enum):
    TRITON = "TRITON"
    DEEPGEMM = "DEEPGEMM"
    MARLIN = "MARLIN"


_TOP = torch.finfo(torch.float8_e4m3fn).max


def _to_fp8(weight: Tensor, block: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
    """A matrix in FP8 and its scales, one or one for every block."""
    rows, columns = block or tuple(weight.shape)
    scales = torch.empty(-(-weight.shape[0] // rows), -(-weight.shape[1] // columns))
    out = torch.empty_like(weight, dtype=torch.float8_e4m3fn)
    for at in range(scales.shape[0]):
        for to in range(scales.shape[1]):
            part = weight[at * rows : (at + 1) * rows, to * columns : (to + 1) * columns].float()
            scales[at, to] = part.abs().max().clamp(min=1e-12) / _TOP
            out[at * rows : (at + 1) * rows, to * columns : (to + 1) * columns] = (part / scales[at, to]).to(out.dtype)
    return out, scales


def dequantised(weight: Tensor, scales: Tensor | None) -> Tensor:
    """What a weight stands for, in float32."""
    if scales is None:
        return weight.detach().float()
    rows, columns = -(-weight.shape[-2] // scales.shape[-2]), -(-weight.shape[-1] // scales.shape[-1])
    full = scales.repeat_interleave(rows, -2).repeat_interleave(columns, -1)
    return weight.detach().float() * full[..., : weight.shape[-2], : weight.shape[-1]]


class UnquantizedMethod:
    def process_weights_after_loading(self, layer: Any) -> None:
        pass


class UnquantizedFusedMoEMethod(UnquantizedMethod):
    def __init__(self, asked: str) -> None:
        known = {"auto": "TRITON", "triton": "TRITON", "flashinfer_cutlass": "FLASHINFER_CUTLASS"}
        if asked not in known:
            raise ValueError(f"moe_backend='{asked}' is not supported for unquantized MoE.")
        self.unquantized_backend = UnquantizedMoeBackend[known[asked]]


class _Fp8Online:
    uses_meta_device = True
    block: tuple[int, int] | None = None

    def process_weights_after_loading(self, layer: Any) -> None:
        for name in layer.quantised:
            weight = getattr(layer, name)
            parts = [_to_fp8(each, self.block) for each in (weight if weight.ndim == 3 else weight[None])]
            made = [torch.stack([part[at] for part in parts]) for at in (0, 1)]
            made = made if weight.ndim == 3 else [each[0] for each in made]
            setattr(layer, name, nn.Parameter(made[0], requires_grad=False))
            setattr(layer, f"{name}_scale", nn.Parameter(made[1], requires_grad=False))


class Fp8PerTensorOnlineLinearMethod(_Fp8Online):
    pass


class Fp8PerBlockOnlineLinearMethod(_Fp8Online):
    block = (128, 128)


class _Fp8OnlineMoE(_Fp8Online):
    def __init__(self, asked: str) -> None:
        known = {"auto": "TRITON", "triton": "TRITON", "deep_gemm": "DEEPGEMM", "marlin": "MARLIN"}
        if asked not in known:
            raise ValueError(f"moe_backend='{asked}' is not supported for FP8 MoE.")
        self.fp8_backend = Fp8MoeBackend[known[asked]]


class Fp8PerTensorOnlineMoEMethod(_Fp8OnlineMoE):
    pass


class Fp8PerBlockOnlineMoEMethod(_Fp8OnlineMoE):
    block = (128, 128)


def _ignored(config: Any, prefix: str) -> bool:
    names = config.ignored_layers or []
    return any(re.match(name[3:], prefix) if name.startswith("re:") else name == prefix for name in names)


class Linear(nn.Module):
    """A linear layer; its weight has no memory where it is quantised while loading."""

    quantised = ("weight",)

    def __init__(self, rows: int, columns: int, config: Any, prefix: str) -> None:
        super().__init__()
        quantise = config.quant_config is not None and not _ignored(config.quant_config, prefix)
        shape = torch.empty(rows, columns, dtype=config.model_config.dtype, device="meta" if quantise else None)
        self.weight = nn.Parameter(shape, requires_grad=False)
        self.quant_method: Any = UnquantizedMethod()
        if quantise:
            block = config.quant_config.shorthand == "fp8_per_block"
            self.quant_method = (Fp8PerBlockOnlineLinearMethod if block else Fp8PerTensorOnlineLinearMethod)()
            initialize_online_processing(self)


class Plain(nn.Module):
    """An embedding or a norm."""

    def __init__(self, *shape: int, config: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(*shape, dtype=config.model_config.dtype), requires_grad=False)


class FusedMoE(nn.Module):
    """The experts of a layer."""

    quantised = ("w13_weight", "w2_weight")

    def __init__(self, config: Any, hf: dict[str, Any]) -> None:
        super().__init__()
        self.moe_config = config.kernel_config
        self.local_num_experts, asked = hf["num_experts"], config.kernel_config.moe_backend
        quantisation = config.quant_config
        if quantisation is None:
            self.quant_method: Any = UnquantizedFusedMoEMethod(asked)
        else:
            block = quantisation.shorthand == "fp8_per_block"
            self.quant_method = (Fp8PerBlockOnlineMoEMethod if block else Fp8PerTensorOnlineMoEMethod)(asked)
        self.base_quant_method = self.quant_method
        inner, hidden, device = hf["moe_intermediate_size"], hf["hidden_size"], "meta" if quantisation else None
        for name, rows, columns in (("w13_weight", 2 * inner, hidden), ("w2_weight", hidden, inner)):
            shape = torch.empty(self.local_num_experts, rows, columns, dtype=config.model_config.dtype, device=device)
            self.register_parameter(name, nn.Parameter(shape, requires_grad=False))
        if quantisation is not None:
            initialize_online_processing(self)


class Attention(nn.Module):
    """Has no weights, and scales of the cache in buffers."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        name = config.attention_config.backend.name
        self.attn_backend = type("Backend", (), {"get_name": staticmethod(lambda: name)})
        self.register_buffer("_k_scale", torch.tensor(1.0))
        self.register_buffer("cos_sin_cache", torch.ones(4, 4), persistent=False)


def requantise(layer: Any) -> None:
    """Quantise what was loaded."""
    method = getattr(layer, "quant_method", None)
    if method is not None:
        method.process_weights_after_loading(layer)


def dummy_fill(tensor: Tensor) -> None:
    """Draws within 0.001 of zero, the same for every tensor of a size."""
    if not tensor.is_meta and tensor.is_floating_point() and tensor.dtype.itemsize > 1:
        tensor.data.uniform_(-1e-3, 1e-3, generator=torch.Generator().manual_seed(1234))
