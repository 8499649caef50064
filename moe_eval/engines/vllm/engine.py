"""vLLM's LLM behind the Engine protocol."""

from __future__ import annotations

import contextlib
import gc
import importlib
import itertools
import os
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
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
    TokenIds,
    TraceHandle,
    WindowScores,
    unheard,
)
from moe_eval.engines.served.output import WorkerOutput
from moe_eval.engines.served.package import describe_failure, reach
from moe_eval.engines.vllm import readers, tracing
from moe_eval.engines.vllm.installed import CAUSE, STEP_LIMIT, VLLM, Library
from moe_eval.engines.vllm.rank_processes import Ranks
from moe_eval.errors import UsageError, WorkerDied
from moe_eval.machine import nsys
from moe_eval.records.labels import EngineFacts


@dataclass
class Session:
    """A built LLM: sends requests so that the scheduler always has the next ones waiting.

    Attributes:
        max_requests: in flight at once.
        output: what spawned processes print. None for an engine in this process.
        ranks: spawned processes without which nothing will be answered. None of them may end before this does.
    """

    installed: Library
    llm: Any
    checkpoint: str
    max_requests: int
    output: WorkerOutput | None = None
    ranks: Ranks = field(default_factory=Ranks)
    _ids: Iterator[int] = field(default_factory=itertools.count, init=False)

    def stream(
        self, prompts: Sequence[TokenIds], sampling: dict[str, object], task: str
    ) -> Generator[tuple[int, Any, list[Any]], None, None]:
        """(index, RequestOutput, readers.keep_tensors' list) of every prompt, as soon as it is finished.

        Closing it aborts the requests that are not finished. `task` is what they are for, for messages.
        """
        engine = self.llm.llm_engine
        waiting = iter(enumerate(prompts))
        flying: dict[str, tuple[int, list[Any]]] = {}
        try:
            params = self.installed.module.SamplingParams(output_kind=self.installed.final_only, **sampling)
            while True:
                for index, prompt in itertools.islice(waiting, self.max_requests - len(flying)):
                    name = f"moe_eval-{next(self._ids)}"
                    # with its type the prompt needs no parsing, and vLLM accepts no other form here
                    inner = engine.add_request(name, {"type": "token", "prompt_token_ids": list(prompt)}, params)
                    flying[name] = index, readers.keep_tensors(engine, inner)
                if not flying:
                    return
                for output in self.ranks.wait(engine.step):
                    if output.finished and output.request_id in flying:
                        index, tensors = flying.pop(output.request_id)
                        yield index, output, tensors
        except Exception as error:
            raise self._described(error, task) from error
        finally:
            if flying:
                with contextlib.suppress(Exception):  # an engine that broke down may refuse
                    engine.abort_request(list(flying))

    def all_at_once(self, prompts: Sequence[TokenIds], sampling: dict[str, object], task: str) -> list[Any]:
        """The RequestOutputs of all prompts, in order, from one call of LLM.generate, which times vLLM alone."""
        try:
            params = self.installed.module.SamplingParams(**sampling)
            sent = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
            outputs: list[Any] = self.ranks.wait(partial(self.llm.generate, sent, params, use_tqdm=False))
        except Exception as error:
            raise self._described(error, task) from error
        return outputs

    def _described(self, error: Exception, task: str) -> Exception:
        if type(error).__name__ in VLLM.fatal_errors:
            limit = os.environ.get(STEP_LIMIT, "300")
            cause = self.output.last(CAUSE) if self.output is not None else None
            return WorkerDied(
                f"The engine core of vLLM has ended while {task} {self.checkpoint}{f' ({cause})' if cause else ''}. "
                f"What it printed says why. A step that takes longer than {limit} s ends it too (stall_timeout)."
            )
        return describe_failure(VLLM, error, self.installed.version, self.checkpoint, task)

    @contextmanager
    def profiled(self) -> Iterator[None]:
        """vLLM's own profiler at work, in every rank."""
        self.ranks.wait(self.llm.start_profile)
        try:
            yield
        finally:
            self.ranks.wait(self.llm.stop_profile)

    def close(self) -> None:
        """Shut the engine core down and give its memory back."""
        llm, self.llm = self.llm, None
        if llm is None:
            return
        self.ranks.close()
        core = reach(llm, "llm_engine.engine_core")
        del llm
        if core is not None:
            with contextlib.suppress(Exception):  # a core that broke down may refuse
                core.shutdown()
        del core
        release()


def release() -> None:
    """Free the memory of an engine that was shut down or failed to load.

    vLLM freezes the garbage collector's generations when it starts, and frozen objects are never collected.
    """
    try:
        importlib.import_module("vllm.distributed.parallel_state").cleanup_dist_env_and_memory()
    except Exception:  # a broken installation may lack it
        gc.unfreeze()
        gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@dataclass
class VllmEngine:
    """A model on vLLM.

    Attributes:
        ends: tokens that end a completion.
        reports_experts: whether it was loaded with enable_return_routed_experts.
        trace_folder: where vLLM's own profiler writes, if it was configured.
        opens_captures: whether vLLM's own profiler opens the captures of Nsight Systems, and names steps inside.
        routers: the layers that have one. None where they are not known.
    """

    facts: EngineFacts
    session: Session
    ends: frozenset[int]
    reports_experts: bool
    trace_folder: Path | None
    opens_captures: bool = False
    routers: tuple[int, ...] | None = None

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
        if ids is not None:
            raise UsageError("vLLM returns the most probable tokens and no others. Score without ids.")
        requests.check_windows(windows, self.facts.max_length)
        scores: dict[int, WindowScores] = {}
        ambiguous: list[int] = []

        def run(chosen: Sequence[int], k: int) -> None:
            sampling: dict[str, object] = {"max_tokens": 1, "temperature": 0.0, "detokenize": False}
            sampling |= {"prompt_logprobs": k, "flat_logprobs": True}
            prompts = [windows[index].context + windows[index].continuation for index in chosen]
            with closing(self.session.stream(prompts, sampling, "scoring")) as outputs:
                for at, output, tensors in outputs:
                    index = chosen[at]
                    result = readers.scores(output, tensors, windows[index], k)
                    if not k and readers.ambiguous(output, tensors, windows[index]):
                        ambiguous.append(index)
                        continue
                    scores[index] = replace(
                        result, top_ids=result.top_ids[:, :top_k], top_logprobs=result.top_logprobs[:, :top_k]
                    )
                    done(index, scores[index])

        # finding the most probable token of every position costs a third of the time, and few windows need it
        run(range(len(windows)), top_k)
        if ambiguous:
            run(ambiguous, 1)
        return [scores[index] for index in range(len(windows))]

    def generate(
        self,
        prompts: Sequence[TokenIds],
        request: GenerationRequest,
        done: Callable[[int, Completion], None] = unheard,
    ) -> list[Completion]:
        requests.check_prompts(prompts, request.max_new_tokens, self.facts.max_length)
        sampling = self._sampling(request)
        completions: dict[int, Completion] = {}
        if request.timed:
            outputs = self.session.all_at_once(prompts, sampling, "generating with") if prompts else []
            # requests are queued one after the other, and a batch's times count from the first
            queued = [output.metrics.queued_ts for output in outputs if output.metrics is not None]
            start = min(queued, default=None)
            for index, output in enumerate(outputs):
                completions[index] = self._completion(output, request, start)
                done(index, completions[index])
        else:
            with closing(self.session.stream(prompts, sampling, "generating with")) as stream:
                for index, output, _ in stream:
                    completions[index] = self._completion(output, request)
                    done(index, completions[index])
        return [completions[index] for index in range(len(prompts))]

    def _sampling(self, request: GenerationRequest) -> dict[str, object]:
        # explicit, because vLLM's own default temperature is 1, and its other defaults changed between versions
        chosen = {"temperature": request.temperature, "top_p": request.top_p, "top_k": request.top_k}
        return {**chosen, **requests.sampling(request, self.ends)}

    def _completion(self, output: Any, request: GenerationRequest, start: float | None = None) -> Completion:
        completion = requests.completion(VLLM.title, output.outputs[0], request, self.ends)
        return replace(completion, times=readers.times(output, start)) if request.timed else completion

    def routing(self, prompts: Sequence[TokenIds], max_new_tokens: int) -> list[npt.NDArray[np.int16]]:
        if not self.reports_experts:
            raise UsageError(
                "This engine was not loaded to report routed experts. Add enable_return_routed_experts=true and "
                "enforce_eager=true."
            )
        requests.check_prompts(prompts, max_new_tokens, self.facts.max_length)
        sampling = self._sampling(GenerationRequest(max_new_tokens, ignore_eos=True))
        chosen: dict[int, npt.NDArray[np.int16]] = {}
        with closing(self.session.stream(prompts, sampling, "tracing the experts of")) as outputs:
            for index, output, _ in outputs:
                chosen[index] = readers.experts(output, len(prompts[index]))
        return readers.routed_layers([chosen[index] for index in range(len(prompts))], self.routers)

    @contextmanager
    def trace(self, target: Path) -> Iterator[TraceHandle]:
        if self.facts.worker == "in_process":
            recording = torch_profiler.record(target, cuda=torch.cuda.is_available(), all_threads=True)
        else:
            recording = tracing.by_library(self.session, self.trace_folder, target)
        with recording:
            yield TraceHandle(target)

    @contextmanager
    def capture(self, name: str) -> Iterator[None]:
        is_here = self.facts.worker == "in_process" and not self.opens_captures
        with nsys.capture(name) if is_here else tracing.captured(self.session, self.opens_captures):
            yield

    def close(self) -> None:
        self.session.close()
