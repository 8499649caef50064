"""Windows as one padded batch, and the rows of it that are scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from moe_eval.data.window import Window
from moe_eval.engines.base import PositionIds, WindowScores
from moe_eval.engines.head import Head, body
from moe_eval.frozen import frozen

Arriving = Callable[[], list[WindowScores]]


@frozen
class Rows:
    """A batch on its device.

    Attributes:
        tokens: int64, shape (sequences, longest). Padding is on the right and attention is causal: no real token sees
            it, so no mask is needed.
        is_real: whether a place holds a token of a sequence, bool, the same shape.
        where: the scored positions of the flattened batch.
        windows: that they belong to.
    """

    tokens: Tensor
    is_real: Tensor
    where: Tensor
    windows: Sequence[Window]

    @classmethod
    def of(cls, inputs: Sequence[Sequence[int]], readers: Sequence[tuple[int, Window]], device: Any) -> Rows:
        """A batch of what is read, and the windows with the index of what each reads."""
        lengths = np.array(list(map(len, inputs)))
        width = int(lengths.max())
        is_real = np.arange(width) < lengths[:, None]
        tokens = np.zeros((len(inputs), width), dtype=np.int64)
        tokens[is_real] = np.concatenate(inputs)
        ends = [(row * width + len(window.inputs), len(window.continuation)) for row, window in readers]
        where = np.concatenate([np.arange(end - size, end) for end, size in ends])
        return cls(
            on_device(tokens, device),
            on_device(is_real, device),
            on_device(where, device),
            [window for _, window in readers],
        )

    def hidden(self, model: Any) -> Tensor:
        """The last hidden states of a model of Transformers, shape (sequences, longest, width)."""
        states: Tensor = body(model)(input_ids=self.tokens, use_cache=False).last_hidden_state
        return states

    def scores(self, head: Head, hidden: Tensor, top_k: int, ids: PositionIds | None = None) -> list[WindowScores]:
        """The scores of every window. `ids`: as of Engine.score, of all windows one after another."""
        return self.sent(head, hidden, top_k, ids)()

    def sent(self, head: Head, hidden: Tensor, top_k: int, ids: PositionIds | None = None) -> Arriving:
        """The same scores, still on their way."""
        return sent(head, hidden.flatten(0, 1)[self.where], self.windows, top_k, ids)


def sent(head: Head, hidden: Tensor, windows: Sequence[Window], top_k: int, ids: PositionIds | None = None) -> Arriving:
    """The scores of windows on their way from the device: the work of the next batch may begin before they are read.

    Args:
        hidden: the states that predict the windows' tokens, in order: shape (tokens, width).
    """
    device = hidden.device
    targets = on_device(np.concatenate([window.continuation for window in windows]), device)
    further = None if ids is None else on_device(ids.astype(np.int64), device)
    parts = [part.to("cpu", non_blocking=True) for part in head.score(hidden, targets, top_k, further)]
    arrived = torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None
    splits = np.cumsum([len(window.continuation) for window in windows])[:-1]

    def read() -> list[WindowScores]:
        if arrived is not None:
            arrived.synchronize()
        return [WindowScores(*row) for row in zip(*(np.split(part.numpy(), splits) for part in parts), strict=True)]

    return read


def on_device(array: npt.NDArray[Any], device: Any) -> Tensor:
    """An array on a device. A GPU is not waited for."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
