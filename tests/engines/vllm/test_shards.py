"""Random weights of several ranks: their parts, put together, are the tensors of one."""

from __future__ import annotations

from types import MethodType

import pytest
import torch
from torch import nn

from moe_eval.engines.vllm import random_weights
from moe_eval.errors import UsageError
from tests.doubles import sharded_layers
from tests.doubles.sharded_layers import Place


def _filled(place: Place) -> nn.Module:
    model = sharded_layers.model(place)
    random_weights.fill_model(model, lambda _: False, lambda *_: None, place.size)
    return model


@pytest.mark.parametrize(("size", "experts"), [(2, False), (4, False), (2, True), (4, True)])
def test_parts_make_up_the_tensors_of_one_rank(size: int, experts: bool) -> None:
    single = sharded_layers.whole([_filled(Place())])
    together = sharded_layers.whole([_filled(Place(rank, size, experts)) for rank in range(size)])
    for name, tensor in single.items():
        assert torch.equal(tensor, together[name]), name
        assert abs(tensor.std().item() / 0.02 - 1) < 0.1


def test_no_two_matrices_are_alike_and_padding_is_zero() -> None:
    model = _filled(Place())
    whole = sharded_layers.whole([model])
    experts = whole["w13"].flatten(0, 1).flatten(1)
    assert len(torch.unique(experts, dim=0)) == 2 * sharded_layers.EXPERTS
    assert not torch.equal(whole["k"], whole["v"])
    assert not model.embed_tokens.weight[sharded_layers.VOCABULARY :].any()
    assert model.input_layernorm.weight.tolist() == [1] * sharded_layers.HIDDEN


def test_the_memory_beside_a_parameter_is_one_unsharded_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    fill = random_weights.fill
    monkeypatch.setattr(
        random_weights,
        "fill",
        lambda name, tensor, *module: sizes.append(tensor.numel()) or fill(name, tensor, *module),
    )
    _filled(Place(1, 2))
    assert max(sizes) == sharded_layers.VOCABULARY * sharded_layers.HIDDEN


def test_a_cut_that_nobody_knows_is_left_to_one_rank() -> None:
    def odd(place: Place) -> nn.Module:
        model = sharded_layers.model(place)
        module = nn.Module()
        module.weight = nn.Parameter(torch.empty(4, 4), requires_grad=False)
        module.weight.weight_loader = MethodType(lambda *_: None, model)  # type: ignore[attr-defined]
        model.odd = module
        return model

    random_weights.fill_model(odd(Place()), lambda _: False, lambda *_: None)
    with pytest.raises(UsageError, match=r"unfilled \(odd.weight is the first\).*or one GPU"):
        random_weights.fill_model(odd(Place(0, 2)), lambda _: False, lambda *_: None, 2)
