"""Emulation inside models against a plain loop over tokens and experts that quantises as it goes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moe_eval.emulation import formats
from moe_eval.emulation.model import Emulation, apply
from moe_eval.errors import UsageError

Made = Callable[..., Any]
KINDS = [
    Emulation("fp8", windows=2),
    Emulation("fp8", activations="dynamic"),
    Emulation("fp8_block", activations="dynamic"),
    Emulation("nvfp4", windows=2),
    Emulation("nvfp4", activations="dynamic"),
]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.precision}-{kind.activations}")
fused_families = pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])


def rounded_weight(kind: Emulation, weight: Tensor) -> Tensor:
    """One matrix by itself; gate and up are one matrix here, so they share a scale."""
    return {"fp8": formats.fp8, "fp8_block": formats.fp8_blocks, "nvfp4": formats.nvfp4}[kind.precision](weight)


def rounded_row(kind: Emulation, row: Tensor, amax: float) -> Tensor:
    """One token by itself: with the calibrated amax, or its own."""
    if kind.precision == "fp8_block":
        return formats.fp8_groups(row)
    quantise = formats.fp8 if kind.precision == "fp8" else formats.nvfp4
    return quantise(row, torch.tensor(amax) if kind.activations == "static" else None)


class Loop:
    """Experts one token and one expert at a time. It watches while `entry` and `middle` are what it has seen."""

    def __init__(self, kind: Emulation, gate_up: Tensor, down: Tensor) -> None:
        self.kind, self.watching, self.entry, self.middle = kind, True, 0.0, 0.0
        self.plain = gate_up.clone(), down.clone()
        self.rounded = tuple(torch.stack([rounded_weight(kind, w) for w in part]) for part in self.plain)

    def __call__(self, hidden: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        out = torch.zeros_like(hidden)
        gate_up, down = self.plain if self.watching else self.rounded
        for token, row in enumerate(hidden):
            self.entry = max(self.entry, row.abs().max().item()) if self.watching else self.entry
            read = row if self.watching else rounded_row(self.kind, row, self.entry)
            for expert, weight in zip(experts[token].tolist(), weights[token], strict=True):
                gate, up = (gate_up[expert] @ read).chunk(2)
                inner = nn.functional.silu(gate) * up
                self.middle = max(self.middle, inner.abs().max().item()) if self.watching else self.middle
                inner = inner if self.watching else rounded_row(self.kind, inner, self.middle)
                out[token] += weight * (down[expert] @ inner)
        return out


def looped(model: Any, kind: Emulation, calibration: Tensor) -> Any:
    """The model with its fused experts replaced by loops, calibrated row by row."""
    loops = []
    for layer in model.model.layers:
        loops.append(Loop(kind, layer.mlp.experts.gate_up_proj.detach(), layer.mlp.experts.down_proj.detach()))
        layer.mlp.experts.forward = loops[-1]
    for row in calibration:
        model(input_ids=row[None])
    for loop in loops:
        loop.watching = False
    return model


@torch.no_grad()
def logits(model: Any, tokens: Tensor) -> Tensor:
    found: Tensor = model(input_ids=tokens).logits
    return found


@every_kind
@fused_families
@torch.no_grad()
def test_fused_experts_are_those_of_a_loop(made: Made, tokens: Tensor, family: str, kind: Emulation) -> None:
    """In float64, where sums in another order move no value across a rounding boundary."""
    model = made(family, "batched_mm", torch.float64)
    plain = logits(model, tokens)
    applied = apply(model, kind, lambda: [model(input_ids=row[None]) for row in tokens[:2]])
    assert applied.matrices == 2 * 2 * 4
    found = logits(model, tokens)
    wanted = logits(looped(made(family, "batched_mm", torch.float64), kind, tokens[:2]), tokens)
    assert (plain - wanted).norm() > 1e-3 * plain.norm()
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


@every_kind
@fused_families
@torch.no_grad()
def test_grouped_products_are_those_of_batched_ones(made: Made, tokens: Tensor, family: str, kind: Emulation) -> None:
    """In float32, where a few roundings fall on the other side."""
    found = []
    for backend in ("grouped_mm", "batched_mm"):
        model = made(family, backend)
        plain = logits(model, tokens)
        apply(model, kind, lambda model=model: model(input_ids=tokens[:2]))
        found.append(logits(model, tokens))
    assert (found[0] - found[1]).norm() < 0.1 * (found[0] - plain).norm()


class Expert(nn.Module):
    def __init__(self, names: tuple[str, str, str]) -> None:
        super().__init__()
        self.names = names
        for name, (rows, columns) in zip(names, ((24, 40), (24, 40), (40, 24)), strict=True):
            setattr(self, name, nn.Linear(columns, rows, bias=False))

    def forward(self, hidden: Tensor) -> Tensor:
        gate, up, down = (getattr(self, name) for name in self.names)
        found: Tensor = down(nn.functional.silu(gate(hidden)) * up(hidden))
        return found


class Old(nn.Module):
    """A layer in the form of Transformers 4: a list of experts of three linear layers, and what surrounds them."""

    def __init__(self, names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            self.q_proj, self.gate = nn.Linear(40, 40), nn.Linear(40, 4, bias=False)
            self.experts = nn.ModuleList(Expert(names) for _ in range(4))
            self.shared_expert_gate, self.lm_head = nn.Linear(40, 1), nn.Linear(40, 11)
            for expert in self.experts:  # so that a shared scale and two of their own differ
                getattr(expert, names[1]).weight.data *= 3
        self.double()

    def route(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        weights, chosen = self.gate(hidden).softmax(-1).topk(2)
        return chosen, weights

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = self.q_proj(hidden) * self.shared_expert_gate(hidden).sigmoid()
        chosen, weights = self.route(hidden)
        out = torch.zeros_like(hidden)
        for number, expert in enumerate(self.experts):
            rows, place = torch.where(chosen == number)  # may be none, and the expert is called all the same
            out[rows] += weights[rows, place, None] * expert(hidden[rows])
        found: Tensor = self.lm_head(out)
        return found


@every_kind
@pytest.mark.parametrize("names", [("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2")], ids=["llama", "mixtral"])
@torch.no_grad()
def test_lists_of_experts_are_those_of_a_loop(kind: Emulation, names: tuple[str, str, str]) -> None:
    texts = torch.randn(5, 30, 40, generator=torch.Generator().manual_seed(1)).double()
    model, other = Old(names), Old(names)
    plain = model(texts[4])
    applied = apply(model, kind, lambda: [model(each) for each in texts[:2]])
    assert applied.matrices == 3 * 4
    assert set(applied.sites) == {f"experts.{name}" for name in names}

    parts = [[getattr(expert, name).weight for expert in other.experts] for name in names]
    gate_up = torch.stack([torch.cat([gate, up]) for gate, up in zip(parts[0], parts[1], strict=True)])
    loop = Loop(kind, gate_up, torch.stack(parts[2]))
    if kind.precision == "fp8_block":  # two matrices with blocks of their own
        halves = [torch.stack([rounded_weight(kind, w) for w in part]) for part in parts]
        loop.rounded = torch.cat(halves[:2], 1), halves[2]

    def reference(hidden: Tensor) -> Tensor:
        hidden = other.q_proj(hidden) * other.shared_expert_gate(hidden).sigmoid()
        found: Tensor = other.lm_head(loop(hidden, *other.route(hidden)))
        return found

    for each in texts[:2]:
        reference(each)
    loop.watching = False
    assert (reference(texts[4]) - plain).norm() > 1e-3 * plain.norm()
    for each in (*texts, texts[4, :1]):
        torch.testing.assert_close(model(each), reference(each), rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_experts_share_the_largest_input_that_calibration_saw(made: Made, tokens: Tensor) -> None:
    kind = Emulation("fp8", windows=2)
    model = made("qwen3_moe", "batched_mm", torch.float64)
    sites = apply(model, kind, lambda: [model(input_ids=row[None]) for row in tokens[:2]]).sites
    layers = looped(made("qwen3_moe", "batched_mm", torch.float64), kind, tokens[:2]).model.layers
    for number, layer in enumerate(layers):
        for part, seen in (
            ("gate_up_proj", layer.mlp.experts.forward.entry),
            ("down_proj", layer.mlp.experts.forward.middle),
        ):
            amax = sites[f"model.layers.{number}.mlp.experts.{part}"].amax
            assert amax is not None
            assert amax.item() == pytest.approx(seen, rel=1e-6)
    assert len(sites) == 2 * len(layers)


def changed(model: Any, kind: Emulation, tokens: Tensor) -> set[str]:
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    apply(model, kind, lambda: model(input_ids=tokens[:2]))
    return {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}


@fused_families
@pytest.mark.parametrize("precision", ["fp8", "fp8_block", "nvfp4"])
def test_the_scope_says_which_weights_change(made: Made, tokens: Tensor, family: str, precision: str) -> None:
    experts = {f"model.layers.{n}.mlp.experts.{part}" for n in (0, 1) for part in ("gate_up_proj", "down_proj")}
    attention = {f"model.layers.{n}.self_attn.{part}_proj.weight" for n in (0, 1) for part in "qkvo"}
    how = "dynamic" if precision == "fp8_block" else "static"
    assert changed(made(family), Emulation(precision, "experts", how), tokens) == experts
    assert changed(made(family), Emulation(precision, "all", how), tokens) == experts | attention


@pytest.mark.parametrize("inner", [None, "proj", "wg"], ids=["plain", "gemma4", "hunyuan"])
def test_routers_and_the_head_of_lists_of_experts_stay_as_they_are(inner: str | None) -> None:
    """Some families have the router's linear layer inside a module: router.proj, gate.wg."""
    model = Old()
    if inner:
        model.gate = nn.Sequential(OrderedDict({inner: model.gate}))  # type: ignore[assignment]
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    apply(model, Emulation("nvfp4", "all"), lambda: model(torch.randn(30, 40).double()))
    gate = f"gate.{inner}" if inner else "gate"
    stayed = {name for name, weight in model.named_parameters() if torch.equal(weight, before[name])}
    assert stayed == {f"{name}.weight" for name in (gate, "shared_expert_gate", "lm_head")} | {
        f"{name}.bias" for name in ("q_proj", "shared_expert_gate", "lm_head")
    }


@every_kind
@pytest.mark.parametrize("scope", ["experts", "all"])
@torch.no_grad()
def test_a_row_does_not_depend_on_the_rows_beside_it(made: Made, tokens: Tensor, kind: Emulation, scope: str) -> None:
    model = made("qwen3_moe", "batched_mm", torch.float64)
    apply(model, Emulation(kind.precision, scope, kind.activations), lambda: model(input_ids=tokens[:2]))
    together = logits(model, tokens)
    for row, expected in zip(tokens, together, strict=True):
        torch.testing.assert_close(logits(model, row[None])[0], expected, rtol=1e-6, atol=1e-6)


@every_kind
@torch.no_grad()
def test_weights_are_rounded_once(made: Made, tokens: Tensor, kind: Emulation) -> None:
    model = made("mixtral")
    applied = apply(model, kind, lambda: model(input_ids=tokens[:2]))
    after = {name: weight.clone() for name, weight in model.named_parameters()}
    amax = {name: site.amax for name, site in applied.sites.items()}
    first = logits(model, tokens)
    assert torch.equal(first, logits(model, tokens))
    assert all(torch.equal(weight, after[name]) for name, weight in model.named_parameters())
    assert amax == {name: site.amax for name, site in applied.sites.items()}


@pytest.mark.parametrize("activations", ["static", "dynamic"])
def test_eager_experts_are_refused(made: Made, tokens: Tensor, activations: str) -> None:
    model = made("qwen3_moe", "eager")
    with pytest.raises(
        UsageError, match=r"^Calibration never passed \S+experts\.down_proj .*moe_backend=grouped_mm\.$"
    ):
        apply(model, Emulation("nvfp4", activations=activations), lambda: model(input_ids=tokens))


def test_a_model_without_experts_is_refused(made: Made, tokens: Tensor) -> None:
    model = made("llama")
    with pytest.raises(UsageError, match=r"^LlamaForCausalLM has no experts to emulate nvfp4 in\.$"):
        apply(model, Emulation("nvfp4"), lambda: model(input_ids=tokens))


@every_kind
@pytest.mark.parametrize("part", ["gate_up_proj", "down_proj"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_fused_weight_that_is_no_number_is_named(
    made: Made, tokens: Tensor, kind: Emulation, part: str, value: float
) -> None:
    model = made("qwen3_moe")
    getattr(model.model.layers[1].mlp.experts, part).data[2, 3, 4] = value
    with pytest.raises(UsageError, match=rf"^The weight model\.layers\.1\.mlp\.experts\.{part}\[2\] holds values"):
        apply(model, kind, lambda: model(input_ids=tokens))


@pytest.mark.parametrize("part", ["gate_proj", "up_proj", "down_proj"])
def test_a_weight_of_a_list_that_is_no_number_is_named(part: str) -> None:
    model = Old()
    getattr(model.experts[2], part).weight.data[3, 4] = torch.nan
    with pytest.raises(UsageError, match=rf"^The weight experts\.2\.{part}\.weight holds values"):
        apply(model, Emulation("fp8"), lambda: model(torch.randn(50, 40).double()))
