"""Continues prompts with a model of Transformers: in batches, timed as a whole, or one token after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from moe_eval.engines import requests
from moe_eval.engines.base import Completion, GenerationRequest, TokenIds
from moe_eval.engines.transformers.batching import Batches
from moe_eval.engines.transformers.completions import StopTexts, Streamer, completion
from moe_eval.engines.transformers.threads import Threads
from moe_eval.errors import UsageError

# arguments of `generate` that look at the prompt
_OF_PROMPT = {"repetition_penalty", "no_repeat_ngram_size", "encoder_repetition_penalty", "bad_words_ids", "min_length"}


@dataclass
class Generation:
    """A model, its tokenizer and how much is generated at once."""

    model: Any
    tokenizer: Any
    batches: Batches
    threads: Threads

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end a completion."""
        return requests.end_tokens(self.tokenizer, self.model.generation_config.eos_token_id)

    def generate(
        self, prompts: Sequence[TokenIds], request: GenerationRequest, done: Callable[[int, Completion], None]
    ) -> list[Completion]:
        """The completions of prompts, as base.Engine.generate."""
        if request.seed is not None:
            torch.manual_seed(request.seed)
        completions: dict[int, Completion] = {}

        def run(batch: list[int]) -> None:
            results = self._generate_batch([prompts[index] for index in batch], request)
            for index, result in zip(batch, results, strict=True):
                completions[index] = result
                done(index, result)

        if request.timed:  # the batch is timed as a whole, so it is never split
            try:
                run(list(range(len(prompts))))
            except torch.OutOfMemoryError:
                raise UsageError(
                    f"{len(prompts)} sequences at once do not fit into the memory of {self.batches.device_name}. Give "
                    "fewer or shorter sequences, or use a larger GPU."
                ) from None
            return [completions[index] for index in range(len(prompts))]
        lengths = [len(prompt) + request.max_new_tokens for prompt in prompts]
        # Transformers would count the padding of a batch as text that was there before
        rows = 1 if _OF_PROMPT & set(request.further) else None
        with self.threads.bound():
            for batch in self.batches.of(lengths, rows):
                self.threads.bind()
                self.batches.run(batch, run)
        return [completions[index] for index in range(len(prompts))]

    @torch.inference_mode()
    def _generate_batch(self, prompts: list[TokenIds], request: GenerationRequest) -> list[Completion]:
        ends = sorted({*self.ends, *request.stop_tokens})
        pad = ends[0] if ends else 0
        width = max(map(len, prompts))
        tokens = torch.tensor([[*[pad] * (width - len(row)), *row] for row in prompts], device=self.model.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts], device=self.model.device)
        sampling: dict[str, object] = {"do_sample": False}
        if request.temperature > 0:
            sampling = {"do_sample": True, "temperature": request.temperature}
            sampling |= {"top_p": request.top_p, "top_k": request.top_k}
        texts = StopTexts(self.tokenizer, request.stop, width) if request.stop else None
        if texts:
            sampling |= {"stopping_criteria": [texts]}
        out = self.model.generate(
            input_ids=tokens,
            attention_mask=mask,
            max_new_tokens=request.max_new_tokens,
            min_new_tokens=request.max_new_tokens if request.ignore_eos else request.min_new_tokens or None,
            pad_token_id=pad,
            eos_token_id=ends or None,
            **sampling,
            **request.further,
        )
        sizes = texts.sizes if texts else {}
        return [
            completion(row[: sizes.get(at)], at in sizes, ends, request)
            for at, row in enumerate(out[:, width:].tolist())
        ]

    @torch.inference_mode()
    def stream(self, prompt: TokenIds, max_new_tokens: int, put: Callable[[int], None]) -> None:
        """Continue one prompt greedily to the exact length, and hand every token on as soon as it is there."""
        tokens = torch.tensor([[*prompt]], device=self.model.device)
        ends = sorted(self.ends)
        self.model.generate(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=max_new_tokens,
            min_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=ends[0] if ends else 0,
            eos_token_id=ends or None,
            streamer=Streamer(put),
        )
