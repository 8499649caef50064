"""Emulation of one layer's experts at a time: rounded inside a context, and as they were behind it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from moe_eval.emulation.model import Applied, Group, Site, round_weights
from moe_eval.errors import UsageError
from moe_eval.frozen import frozen

_DECODER_LAYER = re.compile(r".*?\.(\d+)(?=\.)")  # the first number of a module's path is that of its layer


@frozen
class ExpertLayer:
    """The experts of one decoder layer.

    Attributes:
        index: of the decoder layer, whose path in the model is `path`.
        name: the path of the experts.
        fused: their module, where they are three-dimensional parameters. None for a list of linear layers.
        sites: where activations enter their products.
    """

    index: int
    path: str
    name: str
    precision: str
    groups: tuple[Group, ...]
    sites: tuple[Site, ...]
    fused: nn.Module | None

    @property
    def experts(self) -> int:
        """How many there are."""
        return len({group.expert for group in self.groups})

    @property
    def weights(self) -> int:
        """Parameters of all of them."""
        return sum(weight.numel() for group in self.groups for weight in group.weights.values())

    @contextmanager
    def quantised(self, expert: int | None = None) -> Iterator[None]:
        """Round the weights and activations of all experts, or of one of fused experts, inside this context."""
        groups = [group for group in self.groups if expert is None or group.expert == expert]
        pristine = [(weight, weight.clone()) for group in groups for weight in group.weights.values()]
        try:
            for group in groups:
                round_weights(self.precision, group.weights)
            if expert is None:
                with self._rounding():
                    yield
            else:
                assert self.fused is not None
                with replaced(self.fused, self._one_rounded(self.fused.forward, expert)):
                    yield
        finally:
            for weight, copy in pristine:
                weight.copy_(copy)

    @contextmanager
    def _rounding(self) -> Iterator[None]:
        for site in self.sites:
            site.idle = False
        try:
            yield
        finally:
            for site in self.sites:
                site.idle = True

    def _one_rounded(self, original: Any, expert: int) -> Any:
        """Experts of which one is rounded. What no token brings to it stays as it is.

        The part of the rounded expert and that of the others are two sums, each rounded to the model's dtype.
        """

        def forward(hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
            out: Tensor = original(hidden, index, weights)
            chosen = index == expert
            rows = chosen.any(dim=-1).nonzero()[:, 0]
            if len(rows):
                hidden, index, weights, chosen = hidden[rows], index[rows], weights[rows], chosen[rows]
                others = original(hidden, index, weights * ~chosen)
                with self._rounding():
                    out[rows] = others + original(self.sites[0](hidden), index, weights * chosen)
            return out

        return forward


def expert_layers(applied: Applied) -> list[ExpertLayer]:
    """The layers that have experts, in their order in the model."""
    layers = []
    for name in dict.fromkeys(group.module for group in applied.groups if group.expert is not None):
        match = _DECODER_LAYER.match(name)
        if match is None:
            raise UsageError(
                f"The experts {name} belong to no numbered layer. Compare arms with moe-eval ppl --emulate."
            )
        layers.append(
            ExpertLayer(
                index=int(match[1]),
                path=match[0],
                name=name,
                precision=applied.emulation.precision,
                groups=tuple(group for group in applied.groups if group.module == name),
                sites=tuple(site for place, site in applied.sites.items() if place.startswith(f"{name}.")),
                fused=applied.fused.get(name),
            )
        )
    return sorted(layers, key=lambda layer: layer.index)


@contextmanager
def replaced(module: nn.Module, forward: Any) -> Iterator[None]:
    """Give a module another forward inside this context."""
    before = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = before
