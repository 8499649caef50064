"""What layers keep of earlier tokens, and what a new token reads and computes of it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moe_eval.frozen import frozen

Counts = npt.NDArray[np.int64]


@frozen
class Entries:
    """One kind of entry in a layer's cache.

    Attributes:
        values: numbers in an entry.
        flops: of a query with an entry: scores, then the sum over values.
        heads: that tensor parallelism splits an entry by. 1 where every GPU holds the whole of it.
        window: entries that are kept, the last ones. None for all.
        is_chunked: the window does not slide: it begins anew after as many tokens (Llama 4).
        chosen: of the entries that are kept, as many are read by a query at most. None for all.
        tokens: that one entry stands for.
        width: bytes of a number, where the model's own definition and not the engine's cache decides them.
    """

    values: int
    flops: int
    heads: int = 1
    window: int | None = None
    is_chunked: bool = False
    chosen: int | None = None
    tokens: int = 1
    width: float | None = None

    def kept(self, tokens: Counts) -> Counts:
        """How many of them are in the cache after so many tokens."""
        entries = tokens // self.tokens
        if self.window is None:
            return entries
        if self.is_chunked:
            return np.where(entries > 0, (entries - 1) % self.window + 1, 0)
        return np.minimum(entries, self.window)

    def seen(self, tokens: Counts) -> Counts:
        """How many of them a query reads that is the last of so many tokens."""
        kept = self.kept(tokens)
        return kept if self.chosen is None else np.minimum(kept, self.chosen)

    def bytes(self, cache_width: float) -> float:
        """Bytes of an entry in a cache of so many bytes a number."""
        return self.values * (cache_width if self.width is None else self.width)


@frozen
class Mixer:
    """Layers that mix tokens in the same way.

    Attributes:
        layers: how many there are.
        params: of one layer's projections.
        entries: that a layer caches for a token.
        state_values: numbers of a layer's state of a sequence, which does not grow (linear attention, Mamba).
        state_flops: of a token with that state.
    """

    layers: int
    params: int
    entries: tuple[Entries, ...] = ()
    state_values: int = 0
    state_flops: int = 0
