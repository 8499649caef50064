"""Generated rows as completions: where they stop, and what of them counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from moe_eval.engines.base import Completion, GenerationRequest


class StopTexts:
    """Ends a row whose new tokens, without the prompt, spell one of the texts. `sizes` holds the rows' lengths."""

    def __init__(self, tokenizer: Any, texts: tuple[str, ...], prompt: int) -> None:
        self.tokenizer, self.texts, self.prompt = tokenizer, texts, prompt
        self.sizes: dict[int, int] = {}
        # a text has at most as many tokens as bytes, and may begin inside one more
        self._back = max(len(text.encode()) for text in texts) + 1

    def __call__(self, tokens: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        new = tokens[:, self.prompt :]
        for at, row in enumerate(new[:, -self._back :].tolist()):
            if at not in self.sizes and any(text in self.tokenizer.decode(row) for text in self.texts):
                self.sizes[at] = new.shape[1]
        return torch.tensor([at in self.sizes for at in range(len(new))], device=tokens.device)


def completion(tokens: list[int], stopped: bool, ends: list[int], request: GenerationRequest) -> Completion:
    """Cut a generated row at its end: rows that finish early are padded with an end token."""
    if request.ignore_eos:
        return Completion(tuple(tokens), "stop" if stopped else "length")
    cut = next((at for at, token in enumerate(tokens) if token in ends), None)
    if cut is not None:
        return Completion(tuple(tokens[:cut]), "stop")
    return Completion(tuple(tokens), "stop" if stopped or len(tokens) < request.max_new_tokens else "length")


class Streamer:
    """Hands new tokens on. `generate` puts the prompt first."""

    def __init__(self, put: Callable[[int], None]) -> None:
        self._put, self._has_prompt = put, False

    def put(self, tokens: torch.Tensor) -> None:
        if self._has_prompt:
            self._put(int(tokens.reshape(-1)[0]))
        self._has_prompt = True

    def end(self) -> None:
        """Everything has been handed on."""
