"""A window: a piece of text that is scored, as token ids."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
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
