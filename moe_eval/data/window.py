"""A window: a piece of text that is scored, as token ids."""

from __future__ import annotations

from collections.abc import Sequence

from moe_eval.frozen import frozen


@frozen
class Window:
    """Tokens to score, in the harness's disjoint form: `continuation` is scored, `context` conditions it.

    Attributes:
        context: token ids, at least one.
        continuation: token ids, at least one. The model reads (context + continuation)[:-1].
    """

    context: tuple[int, ...]
    continuation: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.context or not self.continuation:
            raise ValueError("a window needs at least one context token and one token to score")

    @property
    def inputs(self) -> tuple[int, ...]:
        """What the model reads: every token but the last."""
        return (self.context + self.continuation)[:-1]


def rolling_windows(tokens: Sequence[int], prefix: int, max_tokens: int) -> list[Window]:
    """A document's windows in the harness's disjoint form: every token is scored once.

    Args:
        prefix: the token that conditions the first one.
        max_tokens: the maximum of a window's scored tokens, and of the tokens that the model reads.
    """
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    rolling = get_rolling_token_windows(token_list=tokens, prefix_token=prefix, max_seq_len=max_tokens, context_len=1)
    return [Window(tuple(context), tuple(scored)) for context, scored in map(make_disjoint_window, rolling)]
