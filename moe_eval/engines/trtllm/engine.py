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
from moe_eval.engines import requests, torch_profiler
from moe_eval.engines.base import (
    Completion,
    GenerationRequest,
    PositionIds,
    RequestTimes,
    TokenIds,
    TraceHandle,
    WindowScores,
    unheard,
)
from moe_eval.engines.served.package import describe_failure, reach
from moe_eval.engines.trtllm import tracing
from moe_eval.engines.trtllm.installed import TRTLLM, Library
from moe_eval.engines.trtllm.readers import ContextLogits, Reader
from moe_eval.engines.trtllm.selftest import Check
from moe_eval.engines.trtllm.workers import Waiter, Workers
from moe_eval.errors import UsageError, WorkerDied
from moe_eval.machine import nsys
from moe_eval.records.labels import EngineFacts

log = logging.getLogger(__name__)

_SHUTDOWN_SECONDS = 60


@dataclass
class Session:
    """A built LLM and its processes: sends requests so that the scheduler always has the next ones waiting.

    Attributes:
        max_requests: in flight at once.
        max_tokens: of prompts in flight at once if their logits are returned.
    """

    installed: Library
    llm: Any
    workers: Workers
    checkpoint: str
    max_requests: int
    max_tokens: int
    _closed: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        # registered after the library's own handler, and so run before it: the library's may wait forever
        atexit.register(_close, weakref.ref(self))

    def stream(
        self, prompts: Sequence[TokenIds], sampling: dict[str, object], task: str, max_tokens: int | None = None
    ) -> Iterator[tuple[int, Any]]:
        """Yield (index, RequestOutput) of every prompt, in order, as soon as it and those before it are finished.

        Args:
            task: what the requests are for, for messages.
            max_tokens: of prompts in flight at once, or None for no limit.
        """
        waiter = Waiter(self.workers)
        flying: deque[tuple[int, Any]] = deque()
        tokens = 0
        try:
            params = self.installed.sampling_params(**sampling)
            for index, prompt in enumerate(prompts):
                while flying and (
                    len(flying) >= self.max_requests or (max_tokens is not None and tokens + len(prompt) > max_tokens)
                ):
                    finished, handle = flying.popleft()
                    yield finished, waiter.wait(handle.result)
                    tokens -= len(prompts[finished])
                flying.append((index, self.llm.generate_async(list(prompt), sampling_params=params, streaming=False)))
                tokens += len(prompt)
            while flying:
                finished, handle = flying.popleft()
                yield finished, waiter.wait(handle.result)
        except WorkerDied:
            self._abandon()
            raise
        except Exception as error:
            raise describe_failure(TRTLLM, error, self.installed.version, self.checkpoint, task) from error
        finally:
            for _, handle in flying:
                abort = getattr(handle, "abort", None)
                if abort is not None and not self._closed:
                    abort()
            waiter.close()

    def ask(self, prompts: Sequence[TokenIds], sampling: dict[str, object]) -> list[Any]:
        """The RequestOutputs of a few prompts, in order."""
        return [output for _, output in self.stream(prompts, sampling, "testing", self.max_tokens)]

    def _abandon(self) -> None:
        """Give up a library whose workers are gone. Its own shutdown would wait for them forever."""
        self._closed = True
        # the library calls shutdown at exit and when it is collected
        self.llm.shutdown = lambda *_, **__: None
        self.workers.kill()

    def close(self) -> None:
        """Shut the library down and end its processes."""
        if self._closed:
            return
        try:
            self.workers.check()
        except WorkerDied:
            return self._abandon()
        self._closed = True
        ending = threading.Thread(target=self.llm.shutdown, daemon=True)
        ending.start()
        ending.join(_SHUTDOWN_SECONDS)
        if ending.is_alive():
            return self._abandon()
        self.workers.end()
        self.llm = None  # with it goes the model of an engine in this process
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _close(session: weakref.ref[Session]) -> None:
    living = session()
    if living is not None:
        living.close()


@dataclass
class TrtllmEngine:
    """A model on TensorRT-LLM.

    Attributes:
        reader: the form of log-probabilities that the self-test chose.
        context: the form that also returns the most probable tokens.
        ends: tokens that end a completion.
        checks: the comparisons of the self-test.
    """

    facts: EngineFacts
    session: Session
    reader: Reader
    context: ContextLogits
    ends: frozenset[int]
    checks: tuple[Check, ...]

    def __post_init__(self) -> None:
        # at the end of the process, or as soon as nobody holds this engine: the next engine needs its memory
        weakref.finalize(self, self.session.close)

    def score(
        self,
        windows: Sequence[Window],
        top_k: int = 0,
        done: Callable[[int, WindowScores], None] = unheard,
        ids: Sequence[PositionIds] | None = None,
    ) -> list[WindowScores]:
        # the engine's own form costs a device synchronisation for every token and candidate
        return self.score_with(self.context if top_k or ids else self.reader, windows, top_k, done, ids)

    def score_with(
        self,
        reader: Reader,
        windows: Sequence[Window],
        top_k: int = 0,
        done: Callable[[int, WindowScores], None] = unheard,
        ids: Sequence[PositionIds] | None = None,
    ) -> list[WindowScores]:
        """Score by a given form of log-probabilities, whichever the self-test chose."""
        requests.check_windows(windows, self.facts.max_length)
        scores, prompts = [], [reader.prompt(window) for window in windows]
        for index, output in self.session.stream(prompts, reader.sampling, "scoring", self.session.max_tokens):
            scores.append(reader.read(output, windows[index], top_k, None if ids is None else ids[index]))
            done(index, scores[-1])
        return scores

    def generate(
        self,
        prompts: Sequence[TokenIds],
        request: GenerationRequest,
        done: Callable[[int, Completion], None] = unheard,
    ) -> list[Completion]:
        requests.check_prompts(prompts, request.max_new_tokens, self.facts.max_length)
        completions: list[Completion] = []
        metrics: list[Any] = []
        sampling = requests.sampling(request, self.ends)
        if request.timed and "return_perf_metrics" in self.session.installed.sampling:
            sampling["return_perf_metrics"] = True
        for index, output in self.session.stream(prompts, sampling, "generating with"):
            completions.append(requests.completion(TRTLLM.title, output.outputs[0], request, self.ends))
            metrics.append(reach(output.outputs[0], "request_perf_metrics.timing_metrics"))
            if not request.timed:
                done(index, completions[-1])
        if request.timed:
            if self._trusts_times(prompts):
                for index, times in enumerate(_times(metrics)):
                    completions[index] = replace(completions[index], times=times)
            for index, completion in enumerate(completions):
                done(index, completion)
        return completions

    def _trusts_times(self, prompts: Sequence[TokenIds]) -> bool:
        """Whether the library's times are right for these prompts. Warns if they are not."""
        several_steps = sum(map(len, prompts)) > (self.facts.max_step_tokens or 0)
        if not several_steps or self.session.installed.times_own_tokens:
            return True
        log.warning(
            "TensorRT-LLM %s dates the first token of waiting requests too early. Its own times are omitted, "
            "because these prompts take several steps.",
            self.session.installed.version,
        )
        return False

    def routing(self, prompts: Sequence[TokenIds], max_new_tokens: int) -> list[npt.NDArray[np.int16]]:
        raise UsageError("TensorRT-LLM does not report which experts tokens go through. Use vLLM or Transformers.")

    @contextmanager
    def trace(self, target: Path) -> Iterator[TraceHandle]:
        if self.facts.worker == "in_process":
            # the engine's loop is another thread
            recording = torch_profiler.record(target, cuda=torch.cuda.is_available(), all_threads=True)
        else:
            recording = tracing.by_library(self.session.llm, target)
        with recording:
            yield TraceHandle(target)

    @contextmanager
    def capture(self, name: str) -> Iterator[None]:
        is_here = self.facts.worker == "in_process"
        with nsys.capture(name) if is_here else tracing.captured(self.session.llm):
            yield

    def close(self) -> None:
        self.session.close()


def _times(metrics: Sequence[Any]) -> list[RequestTimes | None]:
    """The times of every request of a batch, counted from the arrival of the first request.

    TensorRT-LLM's timing_metrics are timedeltas on a steady clock. Only their differences have a meaning.
    """
    start = min((timing.arrival_time for timing in metrics if timing is not None), default=None)

    def request_times(timing: Any) -> RequestTimes:
        moments = (timing.first_scheduled_time, timing.first_token_time, timing.last_token_time)
        return RequestTimes(*((moment - start).total_seconds() for moment in moments))

    return [None if timing is None else request_times(timing) for timing in metrics]
