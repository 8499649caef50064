"""One request inside the engine: prefill, then one token per step."""

from __future__ import annotations

import time
from typing import Any

import torch

from .knobs import knobs, number
from .request import Request

Entry = list[tuple[int, float, int | None]]


def entry(logprobs: torch.Tensor, k: int, forced: int | None) -> Entry:
    """The K most probable tokens of one distribution, and one more whatever its place."""
    values, ids = logprobs.topk(k)
    ranked = not knobs().get("no_rank")
    found: Entry = [
        (int(token), float(value), place if ranked else None)
        for place, (token, value) in enumerate(zip(ids, values, strict=True), start=1)
    ]
    if forced is not None and forced not in (token for token, _, _ in found):
        value = logprobs[forced]
        found.append((forced, float(value), int((logprobs > value).sum()) + 1 if ranked else None))
    return found


def prompt_entries(rows: torch.Tensor, tokens: list[int], first: int, k: int | None, how: str) -> list[Entry]:
    """prompt_logprobs of one version, its faults included.

    Args:
        rows: context logits, fewer than tokens where cached blocks were reused.
        tokens: the prompt.
        first: the first generated token.
        k: as asked for.
        how: Version.prompt_logprobs.
    """
    if k is None or (k == 0 and how != "next_token"):
        return []
    forced: list[int | None] = {
        "top_k": [None] * len(tokens),
        "input_token": list[int | None](tokens),
        "next_token": [*tokens[1:], first],
    }[how]
    logprobs = rows.float().log_softmax(-1)
    # short where rows are missing: nothing realigns the tokens
    entries = [entry(row, k, token) for row, token in zip(logprobs, forced, strict=False)]
    shift = number("shift") % max(len(entries), 1)
    return entries[shift:] + entries[:shift]


class Sequence:
    """A request's state."""

    def __init__(self, request: Request, model: torch.nn.Module, how: str, reused: int) -> None:
        self.request = request
        self.model = model
        self.how = how
        self.reused = reused
        self.number = 0
        self.generated: list[int] = []
        self.read: list[int] = []
        self.logprobs: list[Entry] = []
        self.generation_logits: list[torch.Tensor] = []
        self.prompt_logprobs: list[Entry] = []
        self.context_logits: torch.Tensor | None = None
        self.finish_reason: str | None = None
        self.stop_reason: Any = None
        self.cache: Any = None
        self.first_iter = self.steps = 0
        self.scheduled = self.first_token = self.last_token = 0.0
        seed = request.sampling["seed"]
        self.random = torch.Generator().manual_seed(0 if seed is None else seed)
        short = bool(knobs().get("short_output")) and request.max_tokens > 1
        self.limit = request.max_tokens - short

    def blocks(self, size: int) -> int:
        """Blocks of the key-value cache that it holds."""
        return -(-(len(self.request.tokens) + len(self.generated)) // size)

    def step(self) -> None:
        """One forward and one token."""
        request = self.request
        wanted = request.sampling["return_context_logits"] or request.sampling["prompt_logprobs"] is not None
        new = self.generated[-1:] if self.steps else request.tokens
        keep = 0 if wanted and not self.steps else 1
        with torch.inference_mode():
            answer = self.model(
                input_ids=torch.tensor([new]), past_key_values=self.cache, use_cache=True, logits_to_keep=keep
            )
        self.cache = answer.past_key_values
        logits = answer.logits[0].float()
        token = self._choose(logits[-1])
        if not self.steps:
            self.first_token = time.monotonic()
            if wanted:
                self._context(logits[self.reused :], token)
        self.steps += 1
        self.last_token = time.monotonic()
        self._append(token, logits[-1])

    def _context(self, rows: torch.Tensor, token: int) -> None:
        request = self.request
        k = request.sampling["prompt_logprobs"]
        self.prompt_logprobs = prompt_entries(rows, request.tokens, token, k, self.how)
        if request.sampling["return_context_logits"]:
            self.context_logits = rows.roll(number("shift_logits"), 0)

    def _choose(self, logits: torch.Tensor) -> int:
        sampling = self.request.sampling
        if len(self.generated) < (sampling["min_tokens"] or 0) and self.request.end_id >= 0:
            logits = logits.clone()
            logits[self.request.end_id] = -torch.inf
        if sampling["greedy"]:
            return int(logits.argmax())
        heat = 1.0 if sampling["temperature"] is None else sampling["temperature"]
        values, ids = (logits / heat).sort(descending=True)
        chances = values.softmax(-1)
        if sampling["top_k"]:
            chances[sampling["top_k"] :] = 0
        if sampling["top_p"] is not None:
            chances[chances.cumsum(-1) - chances > sampling["top_p"]] = 0
        return int(ids[torch.multinomial(chances, 1, generator=self.random)])

    def _append(self, token: int, logits: torch.Tensor) -> None:
        sampling = self.request.sampling
        self.read.append(token)
        self.generated.append(token)
        if sampling["logprobs"] is not None:
            self.logprobs.append(entry(logits.log_softmax(-1), sampling["logprobs"], token))
        if sampling["return_generation_logits"]:
            self.generation_logits.append(logits)
        if token == self.request.end_id:
            self._stop(None, drop=1)
            return
        for reason, word in self.request.stops:
            if self.generated[-len(word) :] == word:
                self._stop(reason, drop=0 if sampling["include_stop_str_in_output"] else len(word))
                return
        if len(self.generated) >= self.limit:
            self.finish_reason = "length"

    def _stop(self, reason: Any, drop: int) -> None:
        self.finish_reason, self.stop_reason = "stop", reason
        if drop:
            del self.generated[-drop:], self.logprobs[-drop:], self.generation_logits[-drop:]

    def answer(self, iteration: int) -> dict[str, Any]:
        """What goes back to the caller now."""
        final = self.finish_reason is not None
        # taken from the lists that grow, since in the caller's process nothing is pickled
        answer = {
            "id": self.request.id,
            "token_ids": list(self.generated),
            "logprobs": list(self.logprobs),
            "prompt_logprobs": self.prompt_logprobs,
            "context_logits": None if self.context_logits is None else self.context_logits.numpy(),
            "generation_logits": torch.stack(self.generation_logits).numpy() if self.generation_logits else None,
            "finish_reason": self.finish_reason,
            "stop_reason": self.stop_reason,
            "cached_tokens": self.reused,
            "iterations": (self.first_iter, iteration),
            "final": final,
            "times": None,
        }
        if self.request.perf_metrics and final:
            answer["times"] = (self.request.arrival, self.scheduled, self.first_token, self.last_token)
        return answer
