"""Windows that share a context: a model reads it once, and continues from its keys and values.

Contexts are padded on the left, as Transformers pads prompts: every layer's cache then ends at the last token, also
where a sliding window keeps no more than that many.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from moe_eval.data.window import Window
from moe_eval.engines.head import body

Batches = Callable[[Sequence[int]], Iterable[list[int]]]
Tokens = tuple[int, ...]


def split(windows: Sequence[Window]) -> tuple[list[list[int]], list[int]]:
    """The indices of windows by shared context, and of the windows that are better read whole.

    A context is shared if reading it once saves a third of the tokens. Windows that read the same tokens count once.
    """
    by_context: dict[Tokens, list[int]] = {}
    for index, window in enumerate(windows):
        by_context.setdefault(window.context, []).append(index)
    questions: list[list[int]] = []
    others: list[int] = []
    for context, indices in by_context.items():
        suffixes = {windows[index].continuation[:-1] for index in indices} if len(indices) > 1 else {()}
        saved = (len(suffixes) - 1) * len(context)
        if 3 * saved >= saved + len(context) + sum(map(len, suffixes)):
            questions.append(indices)
        else:
            others += indices
    return questions, others


@dataclass(frozen=True)
class Contexts:
    """A batch of contexts that a model has read.

    Attributes:
        lengths: tokens of every context, shape (contexts,).
        hidden: the last hidden state of every context, shape (contexts, width).
        cache: keys and values of all layers, of the longest context's length.
    """

    model: Any
    lengths: Tensor
    hidden: Tensor
    cache: Any

    @classmethod
    def read(cls, model: Any, contexts: Sequence[Tokens]) -> Contexts:
        lengths = torch.tensor(list(map(len, contexts)), device=model.device)
        width = max(map(len, contexts))
        tokens = torch.tensor([(0,) * (width - len(row)) + row for row in contexts], device=model.device)
        positions = torch.arange(width, device=model.device) - (width - lengths)[:, None]
        out = body(model)(
            input_ids=tokens,
            attention_mask=(positions >= 0).long(),
            position_ids=positions.clamp(min=0),
            use_cache=True,
        )
        return cls(model, lengths, out.last_hidden_state[:, -1], out.past_key_values)

    @property
    def width(self) -> int:
        """Tokens of the longest context."""
        return int(self.lengths.max())

    def continued(self, rows: Sequence[int], suffixes: Sequence[Tokens]) -> Tensor:
        """The hidden states of all tokens of suffixes, one suffix after another: shape (tokens, width).

        Args:
            rows: the context that each suffix continues.
        """
        device = self.lengths.device
        chosen = torch.tensor(rows, device=device)
        sizes = torch.tensor(list(map(len, suffixes)), device=device)[:, None]
        longest = max(map(len, suffixes))
        tokens = torch.tensor([suffix + (0,) * (longest - len(suffix)) for suffix in suffixes], device=device)
        offsets = torch.arange(longest, device=device)[None]
        lengths = self.lengths[chosen, None]
        # padding on the right is seen by nobody, but it needs a position that the model has
        positions = lengths + torch.minimum(offsets, sizes - 1)
        is_real = torch.arange(self.width + longest, device=device) >= self.width - lengths
        states = body(self.model)(
            input_ids=tokens,
            attention_mask=is_real.long(),
            position_ids=positions,
            past_key_values=_selected(self.cache, chosen),
            use_cache=True,
        ).last_hidden_state
        hidden: Tensor = states[offsets < sizes]
        return hidden


def hidden(model: Any, questions: Sequence[Sequence[Window]], batches: Batches) -> Tensor:
    """The hidden states that predict the continuation tokens of all windows in order: shape (tokens, width).

    Args:
        questions: windows by context.
        batches: indices of sequences by batch, from their lengths.
    """
    contexts = Contexts.read(model, [windows[0].context for windows in questions])
    sizes = {
        (row, window.continuation[:-1]): len(window.continuation) - 1
        for row, windows in enumerate(questions)
        for window in windows
        if len(window.continuation) > 1
    }
    suffixes = list(sizes)
    parts, first, end = [contexts.hidden], dict.fromkeys(suffixes, 0), len(questions)
    for batch in batches([contexts.width + size for size in sizes.values()]):
        rows, tokens = zip(*(suffixes[index] for index in batch), strict=True)
        parts.append(contexts.continued(rows, tokens))
        for index in batch:
            first[suffixes[index]] = end
            end += sizes[suffixes[index]]
    where = [
        np.append(row, np.arange(len(window.continuation) - 1) + first.get((row, window.continuation[:-1]), 0))
        for row, windows in enumerate(questions)
        for window in windows
    ]
    return torch.cat(parts)[torch.from_numpy(np.concatenate(where)).to(model.device)]


@torch.inference_mode()
def continues(model: Any) -> bool:
    """Whether a model reads on from its cache, in a padded batch, as it reads a whole text. It is tried."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    tokens = tuple((torch.arange(1, 13) * 13 % vocabulary).tolist())
    questions = [[Window(tokens[:size], tokens[size:])] for size in (8, 5)]
    try:
        computed = hidden(model, questions, lambda lengths: [list(range(len(lengths)))])
    except Exception:  # classes of any origin, which take other arguments or keep their state in another form
        return False
    whole = body(model)(input_ids=torch.tensor([tokens[:-1]], device=model.device), use_cache=False).last_hidden_state
    expected = torch.cat([whole[0, 7:], whole[0, 4:]]).float()
    difference: float = (computed.float() - expected).norm().item()
    return difference <= max(1e-3, 16 * torch.finfo(whole.dtype).eps) * float(expected.norm())


def _selected(cache: Any, rows: Tensor) -> Any:
    """A copy of a cache's rows.

    Raises:
        TypeError: a layer has a state that does not grow by keys and values, such as a recurrent one.
    """
    if not all(
        isinstance(layer, DynamicLayer) and not hasattr(layer, "update_recurrent_state") for layer in cache.layers
    ):
        raise TypeError("a layer keeps another state than keys and values")
    selected = copy.copy(cache)
    selected.layers = [copy.copy(layer) for layer in cache.layers]
    selected.batch_select_indices(rows)
    return selected
