"""TensorRT-LLM's LLM behind the Engine protocol."""

from __future__ import annotations

import gc
import itertools
import logging
import queue
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from moe_eval import exits
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
from moe_eval.engines.trtllm.workers import RESUME, ResponseLost, Waiter, Workers, within
from moe_eval.errors import EngineError, UsageError, WorkerDied
from moe_eval.machine import nsys
from moe_eval.records.labels import EngineFacts

log = logging.getLogger(__name__)

_SHUTDOWN_SECONDS = 20.0
_HEALTH_SECONDS = 2.0
# By default a response may take this long, or this many times the slowest one so far. The first ones compile kernels.
_STALL_SECONDS, _TEST_SECONDS, _STALL_RATIO, _FIRST_SECONDS = 300.0, 60.0, 20, 900.0
_TOKEN_SECONDS = 0.5  # and this long for every new token


@dataclass
class Session:
    """A built LLM and its processes: sends requests so that the scheduler always has the next ones waiting.

    Attributes:
        max_requests: in flight at once.
        max_tokens: of prompts in flight at once if their logits are returned.
        stall_seconds: without a response, after which a run ends. None for what follows from the slowest response.
    """

    installed: Library
    llm: Any
    workers: Workers
    checkpoint: str
    max_requests: int
    max_tokens: int
    stall_seconds: float | None = None
    _slowest: float | None = field(default=None, init=False)
    _closed: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        reference = weakref.ref(self)
        exits.end_in_seconds(lambda: _close(reference))

    def stream(
        self,
        prompts: Sequence[TokenIds],
        sampling: dict[str, object],
        task: str,
        max_tokens: int | None = None,
        *,
        is_test: bool = False,
    ) -> Iterator[tuple[int, Any]]:
        """Yield (index, RequestOutput) of every prompt, in order, as soon as it and those before it are finished.

        If a response is lost, those that have come after it are yielded before the error is raised.

        Args:
            task: what the requests are for, for messages.
            max_tokens: of prompts in flight at once, or None for no limit.
            is_test: a lost response is an EngineError, after which other requests can be sent.
        """
        limit = self._limit(sampling, is_test=is_test)
        waiter = Waiter(lambda waited: self._check(waited, limit, task))
        flying: deque[tuple[int, Any]] = deque()
        try:
            params = self.installed.sampling_params(**sampling)
            sent = tokens = 0

            def send(last: int) -> None:
                for index in range(sent, last):
                    handle = self.llm.generate_async(list(prompts[index]), sampling_params=params, streaming=False)
                    flying.append((index, handle))

            while sent < len(prompts) or flying:
                last = sent
                while last < len(prompts) and len(flying) + last - sent < self.max_requests:
                    tokens += len(prompts[last])
                    if max_tokens is not None and tokens > max_tokens and (flying or last > sent):
                        tokens -= len(prompts[last])
                        break
                    last += 1
                if last > sent:
                    self._wait(waiter, partial(send, last))
                    sent = last
                finished, handle = flying.popleft()
                yield finished, self._wait(waiter, handle.result)
                tokens -= len(prompts[finished])
        except (WorkerDied, ResponseLost) as error:
            reason = error.reason if isinstance(error, ResponseLost) else error
            if is_test and reason is not error:
                raise EngineError(str(reason)) from error
            self.abandon()
            yield from _arrived(flying)
            raise reason from error.__cause__
        except (UsageError, EngineError):
            raise
        except Exception as error:
            raise describe_failure(TRTLLM, error, self.installed.version, self.checkpoint, task) from error
        finally:
            for _, handle in flying:
                abort = getattr(handle, "abort", None)
                if abort is not None and not self._closed:
                    abort()
            waiter.close()

    def _wait(self, waiter: Waiter, call: Callable[[], Any]) -> Any:
        began = time.monotonic()
        try:
            answer = waiter.wait(call)
        except Exception:
            self.workers.check()  # the death of a worker explains any other error
            raise
        self._slowest = max(self._slowest or 0.0, time.monotonic() - began)
        return answer

    def _limit(self, sampling: dict[str, object], *, is_test: bool = False) -> float:
        """Seconds that a response may take."""
        if self.stall_seconds is not None:
            return self.stall_seconds
        if self._slowest is None:
            return _FIRST_SECONDS
        tokens = int(str(sampling.get("max_tokens", 1)))
        return max(_TEST_SECONDS if is_test else _STALL_SECONDS, _STALL_RATIO * self._slowest, _TOKEN_SECONDS * tokens)

    def _check(self, waited: float, limit: float, task: str) -> None:
        """Raise what says that a response will not come.

        Source: TensorRT-LLM, ManagedThread of llmapi/utils.py, which puts an error aside and loses the response.
        """
        self.workers.check()
        lost = _background_error(self.llm)
        if lost is not None:
            raise ResponseLost(describe_failure(TRTLLM, lost, self.installed.version, self.checkpoint, task)) from lost
        if _is_unhealthy(self.llm):
            raise WorkerDied(
                f"TensorRT-LLM says that it is not healthy any more while {task} ({self.workers.last_words}). {RESUME}"
            )
        if waited >= limit:
            silence = f"{limit:g} s while {task} {self.checkpoint} ({self.workers.last_words})"
            raise ResponseLost(
                WorkerDied(
                    f"TensorRT-LLM has given no response for {silence}. Give a larger stall_timeout, or repeat the "
                    "command: with --use_cache it continues from the last score."
                )
            )

    def ask(self, prompts: Sequence[TokenIds], sampling: dict[str, object]) -> list[Any]:
        """The RequestOutputs of a few prompts, in order."""
        return [output for _, output in self.stream(prompts, sampling, "testing", self.max_tokens, is_test=True)]

    def abandon(self) -> None:
        """Give up a library whose workers or responses are gone. Its own shutdown would wait for them forever."""
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
            self._closed = True
            within(_SHUTDOWN_SECONDS, self.llm.shutdown)
        except Exception:  # whatever it is, the process ends with this library, and its workers have to
            return self.abandon()
        self.workers.end()
        self.llm = None  # with it goes the model of an engine in this process
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _background_error(llm: Any) -> BaseException | None:
    """What a thread of the library has put aside. None where nothing is, or where it is kept elsewhere."""
    errors = reach(llm, "_executor._error_queue")
    try:
        error = errors.get_nowait()
    except (AttributeError, queue.Empty):
        return None
    return error if isinstance(error, BaseException) else EngineError(f"TensorRT-LLM lost a response ({error}).")


def _is_unhealthy(llm: Any) -> bool:
    health = getattr(llm, "_check_health", None)
    try:
        return health is not None and within(_HEALTH_SECONDS, health) is False
    except Exception:  # a private interface: what it cannot say, the time without a response does
        return False


def _arrived(flying: deque[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    """The responses that are there already."""
    for index, handle in flying:
        try:
            output = handle.result(timeout=0.01)
        except Exception:  # it is lost as well, or this version's result takes no timeout
            continue
        yield index, output
    flying.clear()


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
        metrics: list[tuple[Any, ...] | None] = []
        sampling = requests.sampling(request, self.ends)
        if request.timed and "return_perf_metrics" in self.session.installed.sampling:
            sampling["return_perf_metrics"] = True
        for index, output in self.session.stream(prompts, sampling, "generating with"):
            completions.append(requests.completion(TRTLLM.title, output.outputs[0], request, self.ends))
            metrics.append(_timing_metrics(output.outputs[0]))
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


def _timing_metrics(output: Any) -> tuple[Any, ...] | None:
    """Arrival, start, first and last token of a request. None where the version or its scheduler measured not all."""
    try:
        timing = output.request_perf_metrics.timing_metrics
        moments = (
            timing.arrival_time,
            timing.first_scheduled_time,
            timing.first_token_time,
            timing.last_token_time,
        )
        return moments if all(a <= b for a, b in itertools.pairwise(moments)) else None
    except (AttributeError, TypeError):  # of no value is worth a failed run
        return None


def _times(metrics: Sequence[tuple[Any, ...] | None]) -> list[RequestTimes | None]:
    """The times of every request of a batch, counted from the arrival of the first request.

    TensorRT-LLM's timing_metrics are timedeltas on a steady clock. Only their differences have a meaning.
    """
    start = min((moments[0] for moments in metrics if moments is not None), default=None)
    if start is None:
        return [None] * len(metrics)
    return [
        None if moments is None else RequestTimes(*((moment - start).total_seconds() for moment in moments[1:]))
        for moments in metrics
    ]
