"""Windows that share a context: a model reads it once, and continues from its keys and values.

Contexts are padded on the left, as Transformers pads prompts: every layer's cache then ends at the last token, also
where a sliding window keeps no more than that many.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from moe_eval.data.window import Window
from moe_eval.engines.head import body
from moe_eval.engines.transformers.rows import on_device
from moe_eval.frozen import frozen

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


@frozen
class Contexts:
    """A batch of contexts that a model has read.

    Attributes:
        lengths: tokens of every context, shape (contexts,).
        hidden: the last hidden state of every context, shape (contexts, width).
        cache: keys and values of all layers, of the longest context's length.
    """

    model: Any
    lengths: npt.NDArray[np.int64]
    hidden: Tensor
    cache: Any

    @classmethod
    def read(cls, model: Any, contexts: Sequence[Tokens]) -> Contexts:
        lengths = np.array(list(map(len, contexts)))
        width = int(lengths.max())
        positions = np.arange(width) - (width - lengths)[:, None]
        out = body(model)(
            input_ids=on_device(np.array([(0,) * (width - len(row)) + row for row in contexts]), model.device),
            attention_mask=on_device((positions >= 0).astype(np.int64), model.device),
            position_ids=on_device(positions.clip(0), model.device),
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
        device, chosen = self.model.device, np.array(rows)
        sizes = np.array(list(map(len, suffixes)))[:, None]
        longest, lengths = int(sizes.max()), self.lengths[chosen, None]
        offsets = np.arange(longest)
        is_real = np.arange(self.width + longest) >= self.width - lengths
        states = body(self.model)(
            input_ids=on_device(np.array([suffix + (0,) * (longest - len(suffix)) for suffix in suffixes]), device),
            attention_mask=on_device(is_real.astype(np.int64), device),
            # padding on the right is seen by nobody, but it needs a position that the model has
            position_ids=on_device(lengths + np.minimum(offsets, sizes - 1), device),
            past_key_values=_selected(self.cache, on_device(chosen, device)),
            use_cache=True,
        ).last_hidden_state
        hidden: Tensor = states.flatten(0, 1)[on_device(np.flatnonzero(offsets < sizes), device)]
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
    return torch.cat(parts)[on_device(np.concatenate(where), model.device)]


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
