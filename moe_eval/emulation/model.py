"""Puts the arithmetic of a precision into a model of Transformers: weights once, activations in every pass."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from moe_eval.emulation import formats
from moe_eval.errors import UsageError
from moe_eval.frozen import frozen

SCOPES = ("experts", "all")
ACTIVATIONS = ("static", "dynamic")

# an expert's number inside a list of experts, whose experts share a site's scale, as fused kernels require
_NUMBER = re.compile(r"(\bexperts)\.\d+")
# linear layers that no quantised checkpoint changes: routers (router.proj and gate.wg too), and the head
_EXCLUDED = re.compile(r"(^|\.)(lm_head|gate|router|shared_expert_gate)(\.|$)")


@frozen
class Emulation:
    """The settings of an emulation.

    Attributes:
        precision: fp8 (one scale a matrix), fp8_block (128 x 128 for weights, 1 x 128 for activations) or nvfp4.
        scope: `experts`, or `all` linear layers but routers and the output head.
        activations: `static` for scales calibrated beforehand (of nvfp4 the float32 scale), `dynamic` for a scale of
            every token. fp8_block has only dynamic scales.
        windows: the number of windows of text that calibrate the static scales, 0 with dynamic scales.
    """

    precision: str
    scope: str = "experts"
    activations: str = "static"
    windows: int = 0


@dataclass
class Site:
    """One place where activations enter matrix products, and the scale that products of a layer share there.

    While it is `idle` values pass unchanged and unobserved.
    """

    quantise: Callable[[Tensor, Tensor | None], Tensor]
    needs_amax: bool
    observing: bool = True
    idle: bool = False
    visited: bool = False
    amax: Tensor | None = None

    @property
    def calibrated(self) -> bool:
        """Whether text has passed it, and left a scale if it needs one."""
        return self.visited and not (self.needs_amax and self.amax is None)

    def __call__(self, values: Tensor) -> Tensor:
        if self.idle:
            return values
        self.visited = True
        if not self.observing:
            return self.quantise(values, self.amax)
        if values.numel():
            largest = values.detach().abs().amax().float()
            self.amax = largest if self.amax is None else torch.maximum(self.amax, largest)
        return values


@frozen
class Group:
    """Matrices that share their largest magnitude, by name.

    Attributes:
        module: the experts that they belong to, or a linear layer of its own.
        expert: its number. None for such a layer.
    """

    module: str
    expert: int | None
    weights: Mapping[str, Tensor]


@dataclass
class Applied:
    """An emulation at work in a model. `fused` has experts by name that are three-dimensional parameters."""

    emulation: Emulation
    sites: dict[str, Site] = field(default_factory=dict)
    groups: list[Group] = field(default_factory=list)
    fused: dict[str, nn.Module] = field(default_factory=dict)
    matrices: int = 0


@torch.no_grad()
def apply(model: Any, emulation: Emulation, calibrate: Callable[[], object]) -> Applied:
    """Round a model's weights in place, and its activations from now on.

    Args:
        model: of Transformers. Its experts may be lists of linear layers or fused three-dimensional parameters.
        calibrate: runs text through the model. It has to pass every site at least once.
    """
    applied = calibrated(model, emulation, calibrate)
    for group in applied.groups:
        round_weights(emulation.precision, group.weights)
        applied.matrices += len(group.weights)
    for site in applied.sites.values():
        site.idle = False
    return applied


@torch.no_grad()
def calibrated(model: Any, emulation: Emulation, calibrate: Callable[[], object]) -> Applied:
    """Make the places where a model will be rounded, and their scales. Nothing is rounded yet: all sites are idle.

    Args and errors as of apply.
    """
    applied = Applied(emulation, fused=dict(_fused(model)))
    linear = list(_linear(model, emulation.scope, list(applied.fused)))
    if not applied.fused and not any(_NUMBER.search(name) for name, _ in linear):
        raise UsageError(f"{type(model).__name__} has no experts to emulate {emulation.precision} in.")
    for name, module in applied.fused.items():
        _instrument_fused(applied, name, module)
        applied.groups += _fused_groups(name, module)
    for name, module in linear:
        site = _site(applied, _NUMBER.sub(r"\1", name))
        module.register_forward_pre_hook(lambda _module, args, site=site: (site(args[0]), *args[1:]))
    applied.groups += _linear_groups(linear)
    calibrate()
    unvisited = [name for name, site in applied.sites.items() if not site.calibrated]
    if unvisited:
        raise UsageError(
            f"Calibration never passed {unvisited[0]} ({len(unvisited)} of {len(applied.sites)} places). Give more "
            "calibration_windows, or moe_backend=grouped_mm."
        )
    for site in applied.sites.values():
        site.observing, site.idle = False, True
    return applied


def _fused(model: Any) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        weight = getattr(module, "gate_up_proj", None)
        if not isinstance(weight, nn.Parameter) or weight.ndim != 3:
            continue
        plain = getattr(module, "is_concatenated", True) and not getattr(module, "is_transposed", False)
        if not plain or getattr(module, "has_bias", False) or not hasattr(module, "_apply_gate"):
            raise UsageError(f"The experts of {name} are stored in a form that emulation does not know.")
        yield name, module


def _linear(model: Any, scope: str, fused: Sequence[str]) -> Iterator[tuple[str, nn.Linear]]:
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{experts}.") for experts in fused)
        if not isinstance(module, nn.Linear) or _EXCLUDED.search(name) or inside:
            continue
        if scope == "all" or _NUMBER.search(name):
            yield name, module


def _instrument_fused(applied: Applied, name: str, module: nn.Module) -> None:
    """Quantise the input of the first product, and of the second, which is the gate's output."""
    entry, middle = _site(applied, f"{name}.gate_up_proj"), _site(applied, f"{name}.down_proj")
    module.register_forward_pre_hook(lambda _module, args: (entry(args[0]), *args[1:]))
    gate: Any = module._apply_gate
    module.__dict__["_apply_gate"] = lambda out: middle(gate(out))


def _site(applied: Applied, name: str) -> Site:
    if name not in applied.sites:
        static = applied.emulation.activations == "static"
        quantise: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {
            "fp8": lambda values, amax: formats.fp8(values, amax) if static else formats.fp8_rows(values),
            "fp8_block": lambda values, _: formats.fp8_groups(values),
            "nvfp4": lambda values, amax: formats.nvfp4(values, amax) if static else formats.nvfp4_rows(values),
        }
        precision = applied.emulation.precision
        applied.sites[name] = Site(quantise[precision], static and precision != "fp8_block")
    return applied.sites[name]


def _fused_groups(name: str, module: nn.Module) -> Iterator[Group]:
    for part in ("gate_up_proj", "down_proj"):
        for number, weight in enumerate(getattr(module, part)):
            yield Group(name, number, {f"{name}.{part}[{number}]": weight})


def _linear_groups(linear: Sequence[tuple[str, nn.Linear]]) -> Iterator[Group]:
    """An expert's gate and up projections together, which engines run as one product with one scale."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, module in linear:
        key = re.sub(r"\.(gate_proj|up_proj|w1|w3)$", ".gate_up_proj", name) if _NUMBER.search(name) else name
        groups.setdefault(key, {})[f"{name}.weight"] = module.weight
    for key, weights in groups.items():
        match = _NUMBER.search(key)
        module_name = key[: match.end(1)] if match else key
        yield Group(module_name, int(match[0].rpartition(".")[2]) if match else None, weights)


def round_weights(precision: str, weights: Mapping[str, Tensor]) -> None:
    """Round matrices that share their largest magnitude, in place."""
    largest = {name: weight.abs().amax().float() for name, weight in weights.items()}
    for name, magnitude in largest.items():
        if not torch.isfinite(magnitude):
            raise UsageError(f"The weight {name} holds values that are no numbers. Copy the checkpoint again.")
    amax = torch.stack(list(largest.values())).amax()
    for weight in weights.values():
        if precision == "fp8_block":
            weight.copy_(formats.fp8_blocks(weight))
        else:
            weight.copy_((formats.fp8 if precision == "fp8" else formats.nvfp4)(weight, amax))
