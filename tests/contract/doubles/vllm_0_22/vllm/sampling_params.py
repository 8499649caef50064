"""How to sample."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from enum import Enum
from typing import Any


class RequestOutputKind(Enum):
    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


class VLLMValidationError(ValueError):
    """A request that does not suit."""


@dataclass
class SamplingParams:
    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: Any = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    flat_logprobs: bool = False
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    skip_clone: bool = False
    routed_experts_prompt_start: int = 0

    def __post_init__(self) -> None:
        self.stop = [] if self.stop is None else [self.stop] if isinstance(self.stop, str) else list(self.stop)
        self.stop_token_ids = list(self.stop_token_ids or [])
        if self.stop and not self.detokenize:
            raise ValueError("stop strings are only supported when detokenize is True.")
        if any(not text for text in self.stop):
            raise ValueError("stop cannot contain an empty string.")
        if not 0 < self.top_p <= 1 or self.temperature < 0 or self.top_k < -1:
            raise VLLMValidationError("top_p, top_k or temperature out of range")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise VLLMValidationError(f"max_tokens must be at least 1, got {self.max_tokens}.")
        if self.prompt_logprobs is not None and self.prompt_logprobs < -1:
            raise VLLMValidationError("prompt_logprobs must be non-negative or -1")
        if self.temperature < 1e-5:
            self.top_p, self.top_k, self.min_p = 1.0, 0, 0.0

    def clone(self) -> SamplingParams:
        return copy.deepcopy(self)

    def verify(self, max_logprobs: int, vocabulary: int) -> None:
        most = vocabulary if max_logprobs == -1 else max_logprobs
        if (self.prompt_logprobs or 0) > most:
            raise VLLMValidationError(
                f"Requested prompt logprobs of {self.prompt_logprobs}, which is greater than max allowed: {most}"
            )
