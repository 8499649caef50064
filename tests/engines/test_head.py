"""Head.score against torch.log_softmax in float64 over the whole vocabulary."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from moe_eval.engines import head as head_module
from moe_eval.engines.head import Head, RowScores
from moe_eval.errors import UsageError

if not torch.cuda.is_available():  # before torch imports Triton, which reads it then
    os.environ.setdefault("TRITON_INTERPRET", "1")

AFTER: dict[str, tuple[dict[str, float], Callable[[Tensor], Tensor]]] = {
    "nothing": ({}, lambda logits: logits),
    "softcapping": ({"final_logit_softcapping": 5.0}, lambda logits: 5.0 * torch.tanh(logits / 5.0)),
    "scaling": ({"logits_scaling": 8.0}, lambda logits: logits / 8.0),
    "scale": ({"logit_scale": 0.0625}, lambda logits: logits * 0.0625),
}


class OnlyHead(nn.Module):
    """As much of a language model as Head looks at."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def get_output_embeddings(self) -> nn.Module:
        return self.layer


def make_head(weight: Tensor, bias: Tensor | None = None, **config: float) -> Head:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
    layer.weight.data = weight
    if bias is not None:
        layer.bias.data = bias
    return Head(OnlyHead(layer), SimpleNamespace(**config))


def noise(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def integers(*shape: int, seed: int = 0, size: int = 3) -> Tensor:
    """Whole numbers, so that logits are exact in float32 and ties are many."""
    return torch.randint(-size, size + 1, shape, generator=torch.Generator().manual_seed(seed)).float()


def check(found: RowScores, logits: Tensor, targets: Tensor, top_k: int, tolerance: float = 2e-5) -> None:
    """`logits` is float64 (n, vocabulary)."""
    expected = torch.log_softmax(logits, dim=-1)
    near: dict[str, float] = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(found.logprobs.double(), expected.gather(1, targets[:, None])[:, 0], **near)
    assert found.greedy.tolist() == (torch.from_numpy(logits.numpy().argmax(1)) == targets).tolist()
    assert found.top_ids.shape == found.top_logprobs.shape == (len(targets), top_k)
    torch.testing.assert_close(found.top_logprobs.double(), expected.topk(top_k).values, **near)
    torch.testing.assert_close(expected.gather(1, found.top_ids), found.top_logprobs.double(), **near)
    assert all(len(set(row)) == top_k for row in found.top_ids.tolist())
    assert (found.logprobs.dtype, found.greedy.dtype) == (torch.float32, torch.bool)
    assert (found.top_ids.dtype, found.top_logprobs.dtype) == (torch.int64, torch.float32)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices of 8 vocabulary entries by 4 rows: 53 entries and 11 rows make 7 x 3 tiles, the last ones short."""
    monkeypatch.setattr(head_module, "_VOCABULARY_SLICE", 8)
    monkeypatch.setattr(head_module, "_CPU_TILE", 32)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("after", AFTER)
@pytest.mark.parametrize("top_k", [0, 1, 5, 13])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("rows", [1, 11])
def test_scores_equal_the_softmax_over_the_whole_vocabulary(rows: int, biased: bool, top_k: int, after: str) -> None:
    config, apply = AFTER[after]
    hidden, weight = noise(rows, 16), noise(53, 16, seed=1)
    bias = noise(53, seed=2, scale=3.0) if biased else None
    logits = apply(hidden.double() @ weight.double().T + (bias.double() if bias is not None else 0))
    targets = logits.argmax(1)
    targets[1::2] = torch.arange(53 - len(targets[1::2]), 53)
    check(make_head(weight, bias, **config).score(hidden, targets, top_k), logits, targets, top_k)


def test_the_real_tile_sizes_cut_a_vocabulary_that_is_no_multiple_of_the_slice() -> None:
    hidden, weight = noise(300, 4), noise(2 * head_module._VOCABULARY_SLICE + 77, 4, seed=1)
    logits = hidden.double() @ weight.double().T
    targets = torch.cat([logits[:150].argmax(1), torch.arange(len(weight) - 150, len(weight))])
    check(make_head(weight).score(hidden, targets, 5), logits, targets, 5)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("top_k", [0, 5])
def test_requested_tokens_are_scored_beside_the_targets(top_k: int) -> None:
    hidden, weight = noise(11, 16), noise(53, 16, seed=1)
    logits, targets = hidden.double() @ weight.double().T, torch.arange(11) * 5 % 53
    ids = torch.randint(0, 53, (11, 7), generator=torch.Generator().manual_seed(4))
    ids[:, :2] = torch.tensor([0, 52])
    scores = make_head(weight).score(hidden, targets, top_k, ids)
    check(scores, logits, targets, top_k)
    expected = torch.log_softmax(logits, -1).gather(1, ids)
    torch.testing.assert_close(scores.of_ids.double(), expected, rtol=1e-5, atol=1e-5)
    assert (scores.of_ids.dtype, make_head(weight).score(hidden, targets).of_ids.shape) == (torch.float32, (11, 0))


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(("first", "second"), [(3, 5), (3, 30), (0, 52)])
def test_the_lowest_of_tied_tokens_is_the_greedy_one(first: int, second: int) -> None:
    weight = torch.zeros(53, 2)
    weight[[first, second]] = 1.0
    scores = make_head(weight).score(torch.ones(3, 2), torch.tensor([first, second, 20]))
    assert scores.greedy.tolist() == [True, False, False]
    assert scores.logprobs[0] == scores.logprobs[1]


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_logits_whose_exponential_overflows_keep_their_differences(sign: float) -> None:
    """Logits of +-1e4 in whole numbers: exact in float32, so that only the softmax itself can lose digits."""
    weight = (sign * 1e4 + integers(53, 1, seed=5, size=2)).clone()
    targets = torch.arange(11) * 5 % 53
    logits = (torch.ones(11, 1) @ weight.T).double()
    check(make_head(weight).score(torch.ones(11, 1), targets, 5), logits, targets, 5)


@pytest.mark.usefixtures("small_tiles")
def test_logits_of_both_extremes_in_one_row() -> None:
    weight = torch.linspace(-1e4, 1e4, 53)[:, None].round()
    targets = torch.tensor([0, 26, 52])
    check(make_head(weight).score(torch.ones(3, 1), targets, 3), weight.T.double().expand(3, -1), targets, 3)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_scored_in_float32(dtype: torch.dtype) -> None:
    hidden, weight, bias = noise(11, 16).to(dtype), noise(53, 16, seed=1).to(dtype), noise(53, seed=2).to(dtype)
    logits = hidden.double() @ weight.double().T + bias.double()
    targets = logits.argmax(1)
    check(make_head(weight, bias).score(hidden, targets, 5), logits, targets, 5)


@pytest.mark.usefixtures("small_tiles")
def test_more_top_tokens_than_the_vocabulary_has_are_all_of_it() -> None:
    hidden, weight = noise(4, 8), noise(19, 8, seed=1)
    targets = torch.tensor([0, 5, 18, 3])
    check(make_head(weight).score(hidden, targets, 40), hidden.double() @ weight.double().T, targets, 19)


@settings(max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(2, 40), st.integers(1, 6)),
    tiling=st.tuples(st.integers(1, 12), st.integers(1, 64), st.sampled_from([0, head_module._CPU_WHOLE])),
    top_k=st.integers(0, 6),
    seed=st.integers(0, 2**16),
)
def test_any_shape_under_any_tiling(
    shape: tuple[int, int, int], tiling: tuple[int, int, int], top_k: int, seed: int
) -> None:
    rows, vocabulary, width = shape
    hidden, weight = integers(rows, width, seed=seed), integers(vocabulary, width, seed=seed + 1)
    targets = torch.randint(0, vocabulary, (rows,), generator=torch.Generator().manual_seed(seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head_module, "_VOCABULARY_SLICE", tiling[0])
        patch.setattr(head_module, "_CPU_TILE", tiling[1])
        patch.setattr(head_module, "_CPU_WHOLE", tiling[2])
        patch.setattr(head_module, "_BLOCK", tiling[0])
        found = make_head(weight).score(hidden, targets, top_k)
    check(found, hidden.double() @ weight.double().T, targets, min(top_k, vocabulary))


@pytest.mark.parametrize(
    "layer", [nn.Identity(), nn.Sequential(nn.Linear(2, 3)), type("Scaled", (nn.Linear,), {})(2, 3)]
)
def test_a_head_that_is_not_a_plain_linear_layer_is_refused(layer: nn.Module) -> None:
    with pytest.raises(UsageError, match=f"{type(layer).__name__}, not a plain linear layer") as refused:
        Head(OnlyHead(layer), SimpleNamespace())
    assert "\n" not in str(refused.value)


class LargestTensor(TorchDispatchMode):
    """Notes the most elements that any operation returned, views of the inputs aside."""

    def __init__(self, *given: Tensor) -> None:
        super().__init__()
        self.elements = 0
        self._given = {each.untyped_storage().data_ptr() for each in given}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in tree_leaves(out):
            if isinstance(each, Tensor) and each.untyped_storage().data_ptr() not in self._given:
                self.elements = max(self.elements, each.numel())
        return out


def test_no_tensor_larger_than_a_tile_is_made() -> None:
    rows, vocabulary = 1024, 40_000
    hidden, weight = noise(rows, 4), noise(vocabulary, 4, seed=1)
    head, targets = make_head(weight), torch.arange(rows)
    with LargestTensor(hidden, weight) as largest:
        head.score(hidden, targets, 5)
    assert 0 < largest.elements <= head_module._CPU_TILE < rows * vocabulary / 16


@pytest.mark.parametrize("rows", [1, 8, 1024])
def test_half_precision_weights_are_never_copied_to_float32_as_a_whole(rows: int) -> None:
    """For 152,000 entries of width 4,096 that copy is 2.5 GB."""
    hidden, weight = noise(rows, 64).bfloat16(), noise(40_000, 64, seed=1).bfloat16()
    head, targets = make_head(weight), torch.arange(rows)
    with LargestTensor(hidden, weight) as largest:
        head.score(hidden, targets)
    assert largest.elements <= max(head_module._CPU_TILE, head_module._VOCABULARY_SLICE * 64) < weight.numel()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_bfloat16_on_a_gpu_keeps_float32_logits() -> None:
    hidden, weight = noise(64, 128).bfloat16(), noise(9001, 128, seed=1).bfloat16()
    logits = hidden.double() @ weight.double().T
    targets = logits.argmax(1)
    scores = make_head(weight.cuda()).score(hidden.cuda(), targets.cuda(), 5)
    check(RowScores(*(part.cpu() for part in scores)), logits, targets, 5, tolerance=1e-4)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("after", AFTER)
@pytest.mark.parametrize("top_k", [0, 1, 5])
def test_the_kernel_folds_as_the_softmax(top_k: int, after: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In Triton's interpreter, or on a GPU where there is one."""
    pytest.importorskip("triton", reason="needs triton, which torch for a GPU brings")
    from moe_eval.engines import fold_kernel

    monkeypatch.setattr(head_module, "_GPU_SLICE", 8)
    monkeypatch.setattr(head_module, "_kernel_of", lambda device: fold_kernel.fold)
    config, apply = AFTER[after]
    hidden, weight, bias = integers(11, 16), integers(53, 16, seed=1), integers(53, seed=2)
    weight[[7, 30, 52]], bias[[7, 30, 52]] = weight[11].clone(), bias[11].clone()  # tied, in one slice and in others
    logits = apply(hidden.double() @ weight.double().T + bias.double())
    targets = torch.from_numpy(logits.numpy().argmax(1))
    targets[1::2] = torch.tensor([7, 11, 30, 52, 0])
    ids = torch.randint(0, 53, (11, 3), generator=torch.Generator().manual_seed(4))
    place = "cuda" if torch.cuda.is_available() else "cpu"
    head = make_head(weight.to(place), bias.to(place), **config)
    scores = RowScores(*(part.cpu() for part in head.score(hidden.to(place), targets.to(place), top_k, ids.to(place))))
    check(scores, logits, targets, top_k)
    torch.testing.assert_close(
        scores.of_ids.double(), torch.log_softmax(logits, -1).gather(1, ids), rtol=2e-5, atol=2e-5
    )
