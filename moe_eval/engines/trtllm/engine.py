"""TensorRT-LLM's LLM behind the Engine protocol."""

from __future__ import annotations

import atexit
import gc
import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from moe_eval.data.window import Window
from moe_eval.engines.base import (
    Completion,
    GenerationRequest,
    RequestTimes,
    TokenIds,
    TraceHandle,
    WindowScores,
    unheard,
)
from moe_eval.engines.options import completed
from moe_eval.engines.trtllm import tracing
from moe_eval.engines.trtllm.failures import explained
from moe_eval.engines.trtllm.installed import Library
from moe_eval.engines.trtllm.readers import ContextLogits, Reader
from moe_eval.engines.trtllm.selftest import Check
from moe_eval.engines.trtllm.workers import Waiter, Workers
from moe_eval.errors import UsageError, WorkerDied
from moe_eval.records.labels import EngineFacts

log = logging.getLogger(__name__)

_SHUTDOWN_SECONDS = 60


@dataclass
class Session:
    """A built LLM and its processes: sends requests so that the scheduler always has the next ones waiting.

    Attributes:
        most_requests: in flight at once.
        most_tokens: of prompts in flight at once where their logits are returned.
    """

    installed: Library
    llm: Any
    workers: Workers
    checkpoint: str
    most_requests: int
    most_tokens: int
    _closed: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        # registered after the library's own handler and so run before it: that one may wait for ever
        atexit.register(_close, weakref.ref(self))

    def stream(
        self, prompts: Sequence[TokenIds], sampling: dict[str, Any], doing: str, most_tokens: int | None = None
    ) -> Iterator[tuple[int, Any]]:
        """Yield (index, RequestOutput) of every prompt, in order, each as soon as it and those before it are done.

        Raises:
            UsageError, EngineError: what went wrong, in a sentence.
        """
        waiter = Waiter(self.workers)
        flying: deque[tuple[int, Any]] = deque()
        tokens = 0
        try:
            params = self.installed.sampling_params(**sampling)
            for index, prompt in enumerate(prompts):
                while flying and (
                    len(flying) >= self.most_requests
                    or (most_tokens is not None and tokens + len(prompt) > most_tokens)
                ):
                    done, handle = flying.popleft()
                    yield done, waiter.wait(handle.result)
                    tokens -= len(prompts[done])
                flying.append((index, self.llm.generate_async(list(prompt), sampling_params=params, streaming=False)))
                tokens += len(prompt)
            while flying:
                done, handle = flying.popleft()
                yield done, waiter.wait(handle.result)
        except WorkerDied:
            self._abandon()
            raise
        except Exception as error:
            raise explained(error, self.installed.version, self.checkpoint, doing) from error
        finally:
            for _, handle in flying:
                abort = getattr(handle, "abort", None)
                if abort is not None and not self._closed:
                    abort()
            waiter.close()

    def ask(self, prompts: Sequence[TokenIds], sampling: dict[str, Any]) -> list[Any]:
        """The RequestOutputs of a few prompts, in order."""
        return [output for _, output in self.stream(prompts, sampling, "testing", self.most_tokens)]

    def _abandon(self) -> None:
        """Give up a library whose workers are gone: its own shutdown would wait for them for ever."""
        self._closed = True
        # the library calls this at exit and when it is collected, in whatever program uses us
        self.llm.shutdown = lambda *_, **__: None
        self.workers.kill()

    def close(self) -> None:
        """Shut the library down and see its processes end."""
        if self._closed:
            return
        try:
            self.workers.check()
        except WorkerDied:
            self._abandon()
            return
        self._closed = True
        ending = threading.Thread(target=self.llm.shutdown, daemon=True)
        ending.start()
        ending.join(_SHUTDOWN_SECONDS)
        if ending.is_alive():
            self._abandon()
            return
        self.workers.end()
        self.llm = None  # with it goes the model of an engine in this process
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _close(session: weakref.ref[Session]) -> None:
    found = session()
    if found is not None:
        found.close()


@dataclass
class TrtllmEngine:
    """A model on TensorRT-LLM.

    Attributes:
        reader: the form of log-probabilities that the self-test chose; `checks` is what it compared.
        context: the other form, which gives the most probable tokens as well.
        ends: tokens that end a completion.
    """

    facts: EngineFacts
    session: Session
    reader: Reader
    context: ContextLogits
    ends: frozenset[int]
    checks: tuple[Check, ...]

    def __post_init__(self) -> None:
        # at the end of the process, or as soon as nobody holds this engine: the next one needs its memory
        weakref.finalize(self, self.session.close)

    def score(
        self, windows: Sequence[Window], top_k: int = 0, done: Callable[[int, WindowScores], None] = unheard
    ) -> list[WindowScores]:
        # the engine's own form costs a device synchronisation for every token and candidate
        return self.score_with(self.context if top_k else self.reader, windows, top_k, done)

    def score_with(
        self,
        reader: Reader,
        windows: Sequence[Window],
        top_k: int = 0,
        done: Callable[[int, WindowScores], None] = unheard,
    ) -> list[WindowScores]:
        """Score by one form of log-probabilities, whichever of them the self-test chose."""
        for window in windows:
            if len(window.inputs) > self.facts.max_length:
                raise ValueError(f"a window of {len(window.inputs)} tokens is longer than {self.facts.max_length}")
        scores = []
        prompts = [reader.prompt(window) for window in windows]
        for index, output in self.session.stream(prompts, reader.sampling, "scoring", self.session.most_tokens):
            scores.append(reader.read(output, windows[index], top_k))
            done(index, scores[-1])
        return scores

    def generate(
        self,
        prompts: Sequence[TokenIds],
        request: GenerationRequest,
        done: Callable[[int, Completion], None] = unheard,
    ) -> list[Completion]:
        for prompt in prompts:
            if len(prompt) + request.max_new_tokens > self.facts.max_length:
                raise ValueError(
                    f"{len(prompt)} tokens and {request.max_new_tokens} new ones are more than {self.facts.max_length}"
                )
        completions: list[Completion] = []
        metrics: list[Any] = []
        for index, output in self.session.stream(prompts, self._sampling(request), "generating with"):
            completions.append(completed("TensorRT-LLM", output.outputs[0], request, self.ends))
            metrics.append(_timing(output.outputs[0]))
            if not request.timed:
                done(index, completions[-1])
        if request.timed:
            several = sum(map(len, prompts)) > (self.facts.max_step_tokens or 0)
            trusted = not several or self.session.installed.times_own_tokens
            if not trusted:
                log.warning(
                    "TensorRT-LLM %s dates the first token of requests that wait for others too early: "
                    "its own times are left out where prompts take several steps.",
                    self.session.installed.version,
                )
            for index, times in enumerate(_times(metrics) if trusted else []):
                completions[index] = replace(completions[index], times=times)
            for index, completion in enumerate(completions):
                done(index, completion)
        return completions

    def _sampling(self, request: GenerationRequest) -> dict[str, Any]:
        found: dict[str, Any] = {
            "max_tokens": request.max_new_tokens,
            "ignore_eos": request.ignore_eos,
            "detokenize": bool(request.stop),
        }
        if not request.ignore_eos:
            found["stop_token_ids"] = sorted(self.ends)  # those of generation_config.json as well, in every version
        if request.stop:
            found |= {"stop": list(request.stop), "include_stop_str_in_output": True}
        if request.temperature > 0:
            found["temperature"] = request.temperature
            if request.top_p < 1:
                found["top_p"] = request.top_p
            if request.top_k > 0:
                found["top_k"] = request.top_k
        if request.timed and "return_perf_metrics" in self.session.installed.sampling:
            found["return_perf_metrics"] = True
        return found

    def routing(self, prompts: Sequence[TokenIds], max_new_tokens: int) -> list[npt.NDArray[np.int16]]:
        raise UsageError("TensorRT-LLM does not tell which experts tokens go through; ask vLLM or Transformers.")

    @contextmanager
    def trace(self, target: Path) -> Iterator[TraceHandle]:
        recording = (
            tracing.in_process() if self.facts.worker == "in_process" else tracing.by_library(self.session.llm, target)
        )
        with recording as export:
            yield TraceHandle(target)
        export(target)

    def close(self) -> None:
        self.session.close()


def _timing(output: Any) -> Any:
    """TensorRT-LLM's timing_metrics: timedeltas on a steady clock, of which only differences mean anything."""
    return getattr(getattr(output, "request_perf_metrics", None), "timing_metrics", None)


def _times(metrics: Sequence[Any]) -> list[RequestTimes | None]:
    """When the engine did what for every request of a batch, from the arrival of the first of them."""
    since = min((each.arrival_time for each in metrics if each is not None), default=None)
    return [
        None
        if each is None
        else RequestTimes(
            *(
                (moment - since).total_seconds()
                for moment in (each.first_scheduled_time, each.first_token_time, each.last_token_time)
            )
        )
        for each in metrics
    ]
