"""A built LLM and its processes: requests go in, responses come out in order, and none is waited for without end."""

from __future__ import annotations

import gc
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from moe_eval import exits
from moe_eval.engines.base import TokenIds
from moe_eval.engines.served.package import describe_failure
from moe_eval.engines.served.processes import Waiter, within
from moe_eval.engines.trtllm import health
from moe_eval.engines.trtllm.installed import TRTLLM, Library
from moe_eval.engines.trtllm.workers import RESUME, ResponseLost, Workers
from moe_eval.errors import EngineError, UsageError, WorkerDied

_SHUTDOWN_SECONDS = 20.0
# By default a response may take this long, or this many times the slowest one so far. The first ones compile kernels.
_STALL_SECONDS, _TEST_SECONDS, _STALL_RATIO, _FIRST_SECONDS = 300.0, 60.0, 20, 900.0
_TOKEN_SECONDS = 0.5  # and this long for every new token


@dataclass
class Session:
    """Sends requests so that the scheduler always has the next ones waiting.

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
            yield from health.arrived(flying)
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
        lost = health.background_error(self.llm)
        if lost is not None:
            raise ResponseLost(describe_failure(TRTLLM, lost, self.installed.version, self.checkpoint, task)) from lost
        if health.is_unhealthy(self.llm):
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


def _close(session: weakref.ref[Session]) -> None:
    living = session()
    if living is not None:
        living.close()
