"""Products of bfloat16 in float32: beside float64, rounded in the same places. Rows by index: beside PyTorch's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from moe_eval.engines.transformers.widened import widen

ENDS = [9, 9, 40]  # the second group has no rows, and the last 8 of 48 rows are in none


class Body(nn.Module):
    """A product with a bias, a batch of products, and one of groups."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        shapes = {"embedding": (64, 96), "square": (96, 96), "bias": (96,), "grouped": (3, 96, 32)}
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape, generator=generator).bfloat16()))

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows = self.embedding[input_ids]
        plain = functional.linear(rows, self.square, bias=self.bias)
        batched = torch.bmm(rows[None], self.square[None])[0]
        offsets = torch.tensor(ENDS, dtype=torch.int32)
        return plain, batched, torch._grouped_mm(rows, self.grouped, offs=offsets)[: ENDS[-1]]


def expected(body: Body, ids: Tensor) -> list[Tensor]:
    rows, square = body.embedding.double()[ids], body.square.double()
    groups = zip([0, *ENDS], ENDS, body.grouped.double(), strict=False)
    grouped = torch.cat([rows[start:end] @ matrix for start, end, matrix in groups])
    return [rows @ square.T + body.bias.double(), rows @ square, grouped]


@torch.no_grad()
def test_products_are_those_of_float64_rounded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    ids, body = torch.arange(48), Body()
    widen(body)
    for product, exact in zip(body(input_ids=ids), expected(body, ids), strict=True):
        assert product.dtype == torch.bfloat16
        is_same = product == exact.bfloat16()
        assert is_same.float().mean() > 0.999
        # where a sum in float32 lies on the other side of the middle between two neighbours
        torch.testing.assert_close(product.double(), exact, rtol=2**-8 + 1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("capability", "dtype", "tokens"), [("AVX512", "bfloat16", 48), ("AVX2", "float32", 48), ("AVX2", "bfloat16", 8)]
)
@torch.no_grad()
def test_others_are_left_to_pytorch(capability: str, dtype: str, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    body, ids = nn.Sequential(nn.Embedding(64, 96), nn.Linear(96, 96)).to(getattr(torch, dtype)), torch.arange(tokens)
    before = body(ids)
    widen(body)
    assert torch.equal(body(ids), before)


class Indexed(nn.Module):
    """Rows by an index of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.randn(64, 6, generator=torch.Generator().manual_seed(0)))

    def forward(self, input_ids: Tensor) -> list[Tensor]:
        rows = self.rows
        by_index = [rows[index] for index in (input_ids, -input_ids, input_ids[None], input_ids[:0])]
        return [*by_index, rows[:48][input_ids > 3], rows[5], rows[2:7], rows[:, None]]


@torch.no_grad()
def test_rows_by_index_are_those_of_pytorch() -> None:
    body, ids = Indexed(), torch.arange(48)
    before = body(ids)
    widen(body)
    assert all(map(torch.equal, body(ids), before))
