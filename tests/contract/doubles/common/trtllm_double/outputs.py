"""What requests answer with."""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from .knobs import knobs

if TYPE_CHECKING:
    import torch


class RequestError(RuntimeError):
    """One request failed inside the engine."""


class ResultTimeout(queue.Empty, TimeoutError):
    """result() waited as long as it was allowed to."""


@dataclass(slots=True)
class Logprob:
    """Log-probability of one token; the rank counts from 1."""

    logprob: float
    rank: int | None = None


@dataclass(slots=True)
class TimingMetrics:
    """Points on a steady clock: only differences mean something."""

    arrival_time: timedelta
    first_scheduled_time: timedelta
    first_token_time: timedelta
    last_token_time: timedelta
    kv_cache_transfer_start: timedelta = timedelta(0)
    kv_cache_transfer_end: timedelta = timedelta(0)
    kv_cache_size: int = 0


@dataclass(slots=True)
class RequestPerfMetrics:
    """Measurements of one request; what the double does not measure is None."""

    timing_metrics: TimingMetrics
    first_iter: int
    last_iter: int
    kv_cache_metrics: Any = None
    speculative_decoding: Any = None


@dataclass(slots=True)
class CompletionOutput:
    """One completion."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    cumulative_logprob: float | None = None
    logprobs: list[Any] = field(default_factory=list)
    prompt_logprobs: list[Any] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    generation_logits: torch.Tensor | None = None
    additional_context_outputs: Any = None
    additional_generation_outputs: Any = None
    disaggregated_params: Any = None
    request_perf_metrics: RequestPerfMetrics | None = None
    _seen: tuple[int, int] = (0, 0)

    @property
    def length(self) -> int:
        return len(self.token_ids)

    @property
    def text_diff(self) -> str:
        return self.text[self._seen[0] :]

    @property
    def token_ids_diff(self) -> list[int]:
        return self.token_ids[self._seen[1] :]

    @property
    def logprobs_diff(self) -> list[Any]:
        return self.logprobs[self._seen[1] :]


def _tensor(array: Any) -> torch.Tensor:
    import torch

    return torch.from_numpy(array)


def _tables(entries: list[Any]) -> list[dict[int, Logprob]]:
    return [{token: Logprob(value, rank) for token, value, rank in entry} for entry in entries]


def _chosen(entries: list[Any], tokens: list[int]) -> list[float]:
    return [{e[0]: e[1] for e in entry}[token] for entry, token in zip(entries, tokens, strict=True)]


class RequestOutput:
    """A request's answer, which generate_async hands out before it is there."""

    def __init__(self, request: Any, prompt: str | None, params: Any, tokenizer: Any, keep_context: bool) -> None:
        self.request_id: int = request.id
        self.prompt = prompt
        self.prompt_token_ids: list[int] = request.tokens
        self.outputs = [CompletionOutput(index=0)]
        self.context_logits: torch.Tensor | None = None
        self.metrics_dict: dict[str, float] = {}
        self.cached_tokens = 0
        self.decoding_iter = 0
        self.avg_decoded_tokens_per_iter: float | None = None
        self.disaggregated_params = None
        self._done = False
        self._params = params
        self._tokenizer = tokenizer
        self._keep_context = keep_context
        self._messages: queue.Queue[Any] = queue.Queue()
        self._abort: Callable[[int], None] = lambda _: None

    @property
    def finished(self) -> bool:
        return self._done

    def _push(self, message: Any) -> None:
        self._messages.put(message)

    def _take(self, timeout: float | None) -> None:
        try:
            message = self._messages.get(timeout=timeout)
        except queue.Empty:
            raise ResultTimeout from None
        if isinstance(message, str):
            self._done = True
            raise RequestError(message)
        self._apply(message)

    def _apply(self, message: dict[str, Any]) -> None:
        params, output = self._params, self.outputs[0]
        output._seen = (len(output.text), len(output.token_ids))
        output.token_ids = message["token_ids"]
        output.finish_reason, output.stop_reason = message["finish_reason"], message["stop_reason"]
        if params.logprobs is not None:
            chosen = _chosen(message["logprobs"], output.token_ids)
            output.cumulative_logprob = sum(chosen)
            simple = getattr(params, "logprobs_simple_format", False)
            output.logprobs = chosen if simple else _tables(message["logprobs"])
        entries = message["prompt_logprobs"]
        if getattr(params, "prompt_logprobs_simple_format", False):
            # the actual token is the only entry, or the last where it was not among the most probable
            output.prompt_logprobs = self._simple(entries)
        else:
            output.prompt_logprobs = _tables(entries)
        if params.detokenize and self._tokenizer is not None:
            output.text = self._tokenizer.decode(output.token_ids, skip_special_tokens=params.skip_special_tokens)
        if message["context_logits"] is not None and self._keep_context:
            self.context_logits = _tensor(message["context_logits"])
        if message["generation_logits"] is not None:
            output.generation_logits = _tensor(message["generation_logits"])
        self.cached_tokens = message["cached_tokens"]
        self.decoding_iter = len(output.token_ids)
        self.avg_decoded_tokens_per_iter = 1.0
        if message["times"] is not None:
            self._measure(message)
        self._done = message["final"]

    def _simple(self, entries: list[Any]) -> list[float]:
        following = self.prompt_token_ids[1:]
        values = [{e[0]: e[1] for e in entry}.get(token) for entry, token in zip(entries, following, strict=False)]
        return [entry[-1][1] if v is None else v for entry, v in zip(entries, [*values, None], strict=False)]

    def _measure(self, message: dict[str, Any]) -> None:
        arrival, scheduled, first, last = message["times"]
        points = TimingMetrics(*(timedelta(seconds=moment) for moment in message["times"]))
        if "no_labels" in knobs():
            points.first_token_time = None  # type: ignore[assignment]
        self.outputs[0].request_perf_metrics = RequestPerfMetrics(points, *message["iterations"])
        self.metrics_dict = {"ttft": first - arrival, "e2e": last - arrival, "request_queue_time": scheduled - arrival}
        if self.outputs[0].length > 1:
            self.metrics_dict["tpot"] = (last - first) / (self.outputs[0].length - 1)

    def result(self, timeout: float | None = None) -> RequestOutput:
        """Wait for the whole answer."""
        end = None if timeout is None else time.monotonic() + timeout
        while not self._done:
            self._take(None if end is None else max(end - time.monotonic(), 0))
        return self

    async def aresult(self) -> RequestOutput:
        """Wait for the whole answer in an event loop."""
        while not self._done:
            await self._arrived()
            self._take(0)
        return self

    async def _arrived(self) -> None:
        while self._messages.empty():
            await asyncio.sleep(0.002)

    def __await__(self) -> Any:
        return self.aresult().__await__()

    def __iter__(self) -> RequestOutput:
        return self

    def __next__(self) -> RequestOutput:
        if self._done:
            raise StopIteration
        self._take(None)
        return self

    def __aiter__(self) -> RequestOutput:
        return self

    async def __anext__(self) -> RequestOutput:
        if self._done:
            raise StopAsyncIteration
        await self._arrived()
        self._take(0)
        return self


class AbortableOutput(RequestOutput):
    """The same from 1.3.0rc8 on."""

    def abort(self) -> None:
        """Give the request up; it ends with finish_reason "cancelled"."""
        self._abort(self.request_id)


AbortableOutput.__name__ = AbortableOutput.__qualname__ = "RequestOutput"
