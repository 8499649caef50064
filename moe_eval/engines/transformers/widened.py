"""Operations of a model on a CPU in a faster form.

- Products of bfloat16 where the CPU has no instructions for them: computed in float32, and rounded. PyTorch's own loops
  for them take four to eight times as long there. Both add in float32, in another order: about one in 10,000 elements
  of a product moves by its last bit.
- Rows by their index, which experts take of every token: PyTorch copies them element by element, and faster by
  index_select.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

# fewer tokens are bound by reading the weights, which every product converts
_FEWEST_TOKENS = 32
_PLAIN = {functional.linear, torch.bmm, torch.matmul}
_GROUPED = getattr(torch, "_grouped_mm", None)


def widen(body: Any) -> None:
    """Compute what lies below a model's head so, where that is faster."""
    weight = next(body.parameters())
    if weight.is_cpu:
        # AVX-512 is where oneDNN begins to convert bfloat16 itself
        is_widened = weight.dtype == torch.bfloat16 and torch.backends.cpu.get_cpu_capability() == "AVX2"
        forward = _within(_InFloat32 if is_widened else _RowsSelected, type(body).forward)
        body.forward = MethodType(forward, body)  # a copy of the body gets one of its own


def _within(mode: type[TorchFunctionMode], forward: Any) -> Any:
    @functools.wraps(forward)
    def run(body: Any, *args: Any, **kwargs: Any) -> Any:
        tokens = kwargs.get("input_ids", args[0] if args else None)
        if tokens is None or tokens.numel() < _FEWEST_TOKENS:
            return forward(body, *args, **kwargs)
        with mode():
            return forward(body, *args, **kwargs)

    return run


class _RowsSelected(TorchFunctionMode):
    def __torch_function__(
        self, function: Any, _types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if function is Tensor.__getitem__ and isinstance(args[1], Tensor):
            rows, index = args
            is_plain = rows.ndim == 2 and index.ndim == 1 and index.dtype == torch.int64
            if is_plain and index.ge(0).all():
                return rows.index_select(0, index)
        return function(*args, **(kwargs or {}))


class _InFloat32(_RowsSelected):
    def __torch_function__(
        self, function: Any, _types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        arguments = kwargs or {}
        if function in _PLAIN and args[0].dtype == torch.bfloat16:
            wide = {name: _float32(value) for name, value in arguments.items()}
            return function(*map(_float32, args), **wide).to(torch.bfloat16)
        if function is _GROUPED and args[0].dtype == torch.bfloat16:
            return _grouped(*args, **arguments)
        return super().__torch_function__(function, _types, args, kwargs)


def _float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) else value


def _grouped(rows: Tensor, matrices: Tensor, *, offs: Tensor, **_: None) -> Tensor:
    """A product for each matrix with a group of rows, which end at `offs`. Transformers gives nothing else."""
    out = rows.new_zeros(len(rows), matrices.shape[-1])
    for (start, end), matrix in zip(itertools.pairwise([0, *offs.tolist()]), matrices, strict=True):
        if end > start:
            out[start:end] = rows[start:end].float() @ matrix.float()
    return out
