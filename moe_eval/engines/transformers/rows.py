"""Windows as one padded batch, and the rows of it that are scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moe_eval.data.window import Window
from moe_eval.engines.base import PositionIds, WindowScores
from moe_eval.engines.head import Head, body


@dataclass(frozen=True)
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
            torch.from_numpy(tokens).to(device),
            torch.from_numpy(is_real).to(device),
            torch.from_numpy(where).to(device),
            [window for _, window in readers],
        )

    def hidden(self, model: Any) -> Tensor:
        """The last hidden states of a model of Transformers, shape (sequences, longest, width)."""
        states: Tensor = body(model)(input_ids=self.tokens, use_cache=False).last_hidden_state
        return states

    def scores(self, head: Head, hidden: Tensor, top_k: int, ids: PositionIds | None = None) -> list[WindowScores]:
        """The scores of every window. `ids`: as of Engine.score, of all windows one after another."""
        return window_scores(head, hidden.flatten(0, 1)[self.where], self.windows, top_k, ids)


def window_scores(
    head: Head, hidden: Tensor, windows: Sequence[Window], top_k: int, ids: PositionIds | None = None
) -> list[WindowScores]:
    """The scores of windows from the hidden states that predict their tokens: shape (tokens, width), in order."""
    targets = torch.tensor([token for window in windows for token in window.continuation], device=hidden.device)
    further = None if ids is None else torch.from_numpy(ids.astype(np.int64)).to(hidden.device)
    splits = np.cumsum([len(window.continuation) for window in windows])[:-1]
    parts = (np.split(part.cpu().numpy(), splits) for part in head.score(hidden, targets, top_k, further))
    return [WindowScores(*window) for window in zip(*parts, strict=True)]
