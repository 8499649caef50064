"""Layers in fewer passes: beside Transformers' own layers, and experts beside a loop over tokens in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from moe_eval.emulation.model import Emulation, apply
from moe_eval.engines.transformers.fewer_passes import shorten
from tests.engines.conftest import FAMILIES, VOCABULARY

TOKENS = torch.arange(1, 49).view(2, 24) * 13 % VOCABULARY
CHANGED = {"qwen3_moe": 11, "mixtral": 7, "granitemoe": 7, "llama": 5, "gemma2": 0, "gpt2": 0, "cohere": 0}


def model(family: str, dtype: torch.dtype = torch.float32, **more: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return transformers.AutoModelForCausalLM.from_config(FAMILIES[family](), dtype=dtype, **more).eval()


def changed(of: nn.Module) -> list[Any]:
    return [module for module in of.modules() if "forward" in vars(module)]


def experts(of: Any) -> Any:
    return of.model.layers[0].mlp.experts


@torch.no_grad()
@pytest.mark.parametrize("family", CHANGED)
def test_a_shortened_model_says_the_same(family: str) -> None:
    shortened = model(family)
    expected = shortened(TOKENS).logits
    classes = shorten(shortened)
    assert len(changed(shortened)) == CHANGED[family], "norms of RMS, and experts"
    assert classes == sorted({type(module).__name__ for module in changed(shortened)})
    torch.testing.assert_close(shortened(TOKENS).logits, expected, rtol=1e-5, atol=1e-5)


def exact(module: Any, states: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
    """One product after another, rounded where a layer in bfloat16 has to: after each matrix."""
    out = torch.zeros(states.shape, dtype=torch.float64)
    for token, (numbers, weights) in enumerate(zip(chosen, shares, strict=True)):
        for number, weight in zip(numbers, weights, strict=True):
            gate, up = (module.gate_up_proj[number].double() @ states[token].double()).bfloat16().chunk(2)
            middle = nn.functional.silu(gate) * up
            of_expert = (module.down_proj[number].double() @ middle.double()).bfloat16()
            out[token] += weight.double() * of_expert.double()
    return out


@torch.no_grad()
def test_experts_are_added_with_one_rounding() -> None:
    module = experts(model("qwen3_moe", torch.bfloat16))
    drawn = torch.Generator().manual_seed(3)
    states = torch.randn(40, 32, generator=drawn).bfloat16()
    chosen = torch.stack([torch.randperm(3, generator=drawn)[:2] for _ in states])  # the last expert has no token
    shares = torch.rand(40, 2, generator=drawn).bfloat16()
    theirs, wanted = module(states, chosen, shares), exact(module, states, chosen, shares)
    shorten(module)
    assert changed(module) == [module]
    ours = module(states, chosen, shares)
    assert (ours == wanted.bfloat16()).float().mean() > 0.95
    assert (ours.double() - wanted).norm() < (theirs.double() - wanted).norm()


@torch.no_grad()
def test_weights_of_another_dtype_are_rounded_as_transformers_does() -> None:
    module = experts(model("qwen3_moe", torch.bfloat16))
    drawn = torch.Generator().manual_seed(5)
    states = torch.randn(40, 32, generator=drawn).bfloat16()
    chosen = torch.stack([torch.randperm(4, generator=drawn)[:2] for _ in states])
    shares = torch.rand(40, 2, generator=drawn)
    expected = module(states, chosen, shares)
    shorten(module)
    assert changed(module) == [module]
    assert torch.equal(module(states, chosen, shares), expected)


@torch.no_grad()
def test_emulated_precisions_pass_through_changed_layers() -> None:
    def emulated(change: Callable[[Any], None]) -> Tensor:
        fresh = model("qwen3_moe")
        change(fresh)
        apply(fresh, Emulation("fp8", scope="all", windows=1), lambda: fresh(TOKENS))
        logits: Tensor = fresh(TOKENS).logits
        return logits

    plain, expected = model("qwen3_moe")(TOKENS).logits, emulated(lambda _: None)
    computed = emulated(shorten)
    assert (expected - plain).norm() > 1e-3 * plain.norm()
    assert (computed - expected).norm() < 0.1 * (expected - plain).norm()


@torch.no_grad()
def test_a_copy_has_its_own_layers() -> None:
    first = model("qwen3_moe")
    shorten(first)
    before = first(TOKENS).logits
    second = copy.deepcopy(first)
    for module in changed(second):
        module.get_parameter("down_proj" if hasattr(module, "down_proj") else "weight").zero_()
    assert torch.equal(first(TOKENS).logits, before)
    assert not torch.equal(second(TOKENS).logits, before)


@torch.no_grad()
@pytest.mark.parametrize("backend", ["eager", "batched_mm"])
def test_experts_of_another_implementation_stay(backend: str) -> None:
    other = model("mixtral", experts_implementation=backend)
    shorten(other)
    assert {type(module).__name__ for module in changed(other)} == {"MixtralRMSNorm"}


class ShiftedRMSNorm(nn.Module):
    """A norm of another formula, as Gemma's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.zeros(32)), 1e-6

    def forward(self, states: Tensor) -> Tensor:
        return nn.functional.rms_norm(states, (32,), 1 + self.weight, self.eps)


class LargeShiftedRMSNorm(ShiftedRMSNorm):
    """The same with one large channel, beside which the others are small."""

    def __init__(self) -> None:
        super().__init__()
        self.weight.data[3] = 40.0


class RoundedOnceRMSNorm(ShiftedRMSNorm):
    """A norm that is rounded behind its weight alone."""

    def __init__(self) -> None:
        super().__init__()
        self.weight.data.copy_(torch.linspace(0.5, 1.5, 32))

    def forward(self, states: Tensor) -> Tensor:
        normed = nn.functional.rms_norm(states.float(), (32,), eps=self.eps)
        return (self.weight.float() * normed).to(states.dtype)


class FloatRMSNorm(RoundedOnceRMSNorm):
    """A norm whose weight stays in float32 in a model of another dtype."""

    def to(self, *_: Any, **__: Any) -> FloatRMSNorm:
        return self


class OtherRMSNorm(nn.Module):
    """A norm whose fields have other names."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.smallest = nn.Parameter(torch.ones(32)), 1e-6

    def forward(self, states: Tensor) -> Tensor:
        return nn.functional.rms_norm(states, (32,), self.weight, self.smallest)


class GatedRMSNorm(ShiftedRMSNorm):
    """A norm that takes a gate."""

    def forward(self, states: Tensor, gate: Tensor) -> Tensor:
        return super().forward(states) * gate


OTHERS = (
    ShiftedRMSNorm,
    LargeShiftedRMSNorm,
    RoundedOnceRMSNorm,
    FloatRMSNorm,
    OtherRMSNorm,
    GatedRMSNorm,
)


@pytest.mark.parametrize("kind", OTHERS)
def test_norms_of_another_kind_stay(kind: type[nn.Module]) -> None:
    module = nn.Sequential(nn.Linear(32, 32).bfloat16(), kind().to(torch.bfloat16))
    shorten(module)
    assert changed(module) == []
