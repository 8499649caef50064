"""A pass of a model that starts in the middle: what lies before a layer's experts is replayed from an earlier pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from moe_eval.emulation.layers import ExpertLayer, replaced
from moe_eval.errors import UsageError


@dataclass
class States:
    """What one pass of a batch leaves behind.

    Attributes:
        outputs: of decoder layers by index, as the layer returned them.
        inner: by index of a decoder layer, what its parts returned before its experts were reached, by their name.
    """

    outputs: dict[int, object] = field(default_factory=dict)
    inner: dict[int, dict[str, object]] = field(default_factory=dict)


class Replay:
    """Records passes of a model and starts others from them.

    Layers are the modules of one list. A layer's parts before its experts, such as attention, are replayed where they
    hold a matrix. Norms and what the layer itself adds are computed again, which gives the same numbers.
    """

    def __init__(self, model: Any, layers: Sequence[ExpertLayer]) -> None:
        """Find the modules.

        Raises:
            UsageError: a pass that starts in the middle does not give what a whole pass gives.
        """
        self._model = model
        self._decoder: Any = model.get_submodule(layers[0].path.rpartition(".")[0])
        self._indices = [layer.index for layer in layers]
        self._blocks = {layer.index: layer.name.removeprefix(f"{layer.path}.").partition(".")[0] for layer in layers}
        self._check()

    @property
    def states_per_token(self) -> int:
        """Vectors of the model's width that are kept of every token, at most."""
        return sum(1 + len(self._parts(index)) for index in self._indices)

    @contextmanager
    def recorded(self) -> Iterator[States]:
        """Record the passes inside, of which the last counts."""
        states = States(inner={index: {} for index in self._indices})
        hooks = []
        for index in self._indices:
            layer = self._decoder[index]
            if index:
                hooks.append(self._decoder[index - 1].register_forward_hook(_keeping(states.outputs, index - 1)))
            reached: list[bool] = []
            hooks.append(layer.get_submodule(self._blocks[index]).register_forward_pre_hook(_marking(reached)))
            for name in self._parts(index):
                hook = _keeping(states.inner[index], name, reached)
                hooks.append(layer.get_submodule(name).register_forward_hook(hook))
        try:
            yield states
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def started(self, states: States, first: int) -> Iterator[None]:
        """Start the passes inside at the experts of the decoder layer `first`."""
        with ExitStack() as stack:
            for index in range(first):
                stack.enter_context(replaced(self._decoder[index], _giving(states.outputs[first - 1])))
            for name, output in states.inner[first].items():
                stack.enter_context(replaced(self._decoder[first].get_submodule(name), _giving(output)))
            yield

    def _parts(self, index: int) -> list[str]:
        """The parts of a layer that hold a matrix, without the one with its experts."""
        return [
            name
            for name, part in self._decoder[index].named_children()
            if name != self._blocks[index] and any(weight.ndim > 1 for weight in part.parameters())
        ]

    @torch.inference_mode()
    def _check(self) -> None:
        """Compare both ways on one short sequence: a family may pass more between layers than their outputs."""
        vocabulary = self._model.config.get_text_config().vocab_size
        tokens = torch.arange(1, 9, device=self._model.device)[None] * 13 % vocabulary

        def hidden() -> Tensor:
            states: Tensor = self._model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
            return states

        with self.recorded() as states:
            expected = hidden()
        # kernels of a GPU may add in another order every time
        allowed = 16 * torch.finfo(expected.dtype).eps * expected.norm() if expected.is_cuda else 0.0
        for index in self._indices:
            with self.started(states, index):
                if not (hidden() - expected).norm() <= allowed:
                    raise UsageError(
                        f"{type(self._model).__name__} passes more between its layers than their outputs, so no pass "
                        f"can start at layer {index}. Compare whole arms with moe-eval ppl --emulate."
                    )


def _keeping(place: Any, key: object, reached: Sequence[bool] = ()) -> Any:
    def keep(_module: nn.Module, _args: object, output: object) -> None:
        if not reached:
            place[key] = output

    return keep


def _marking(reached: list[bool]) -> Any:
    return lambda _module, _args: reached.append(True)


def _giving(output: object) -> Any:
    return lambda *_args, **_arguments: output
