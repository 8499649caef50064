"""One pass over logits beside float64: in Triton's interpreter, or on a GPU where there is one."""

from __future__ import annotations

import os

import pytest
import torch

if not torch.cuda.is_available():  # before torch imports Triton, which reads it then
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton", reason="needs triton, which torch for a GPU brings")

from moe_eval.engines.vllm.softmax_kernel import read

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("rows", "width"), [(3, 50), (5, 4096), (4, 5000), (16, 151_936)])
def test_maxima_sums_and_ranks_are_those_of_float64(dtype: torch.dtype, rows: int, width: int) -> None:
    torch.manual_seed(0)
    table = (20 * torch.randn(rows, width + 8, device=DEVICE)).to(dtype)
    logits, ids = table[:, :width], torch.randint(width, (rows,), device=DEVICE)
    logits[0, 1:4] = -torch.inf
    logits[1, : width // 2] = -torch.inf
    logits[2, 0] = logits[2, ids[2]]  # a tie
    maximum, log_total, ranks = read(logits, ids)
    own = logits.gather(1, ids[:, None])
    expected = logits.double().log_softmax(1).gather(1, ids[:, None])[:, 0]
    torch.testing.assert_close((own[:, 0].float() - maximum - log_total).double(), expected, atol=2e-5, rtol=1e-6)
    assert torch.equal(ranks.long(), (logits >= own).sum(1))


def test_not_a_number_stays_one() -> None:
    logits = torch.zeros((1, 10), device=DEVICE)
    logits[0, 5] = torch.nan
    assert read(logits, torch.tensor([3], device=DEVICE))[1].isnan().all()
