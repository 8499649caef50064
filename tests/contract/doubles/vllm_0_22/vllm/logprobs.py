"""Log-probabilities of tokens, one object each or all in flat lists."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class FlatLogprobs(Sequence):  # type: ignore[type-arg]
    """Position i owns the entries from start_indices[i] to end_indices[i]."""

    start_indices: list[int] = field(default_factory=list)
    end_indices: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    ranks: list[int | None] = field(default_factory=list)
    decoded_tokens: list[str | None] = field(default_factory=list)

    def add(self, token_ids: list[int], logprobs: list[float], ranks: list[int]) -> None:
        self.start_indices.append(len(self.logprobs))
        self.token_ids += token_ids
        self.logprobs += logprobs
        self.ranks += ranks
        self.decoded_tokens += [None] * len(token_ids)
        self.end_indices.append(len(self.logprobs))

    def __len__(self) -> int:
        return len(self.start_indices)

    def __getitem__(self, index: int) -> dict[int, Logprob]:  # type: ignore[override]
        return {
            self.token_ids[at]: Logprob(self.logprobs[at], self.ranks[at], self.decoded_tokens[at])
            for at in range(self.start_indices[index], self.end_indices[index])
        }

    def __iter__(self) -> Iterator[dict[int, Logprob]]:
        return (self[index] for index in range(len(self)))
