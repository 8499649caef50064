"""vLLM's LLM behind the Engine protocol."""

from __future__ import annotations

import contextlib
import gc
import importlib
import itertools
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from moe_eval.data.window import Window
from moe_eval.engines.base import Completion, GenerationRequest, TokenIds, TraceHandle, WindowScores, unheard
from moe_eval.engines.options import completed
from moe_eval.engines.vllm import readers, tracing
from moe_eval.engines.vllm.failures import explained
from moe_eval.engines.vllm.installed import Library
from moe_eval.errors import UsageError
from moe_eval.records.labels import EngineFacts


@dataclass
class Session:
    """A built LLM: sends requests so that the scheduler always has the next ones waiting.

    Attributes:
        most_requests: in flight at once.
    """

    installed: Library
    llm: Any
    checkpoint: str
    most_requests: int
    _ids: Iterator[int] = field(default_factory=itertools.count, init=False)

    def stream(
        self, prompts: Sequence[TokenIds], sampling: dict[str, Any], doing: str
    ) -> closing[Generator[tuple[int, Any, list[Any]], None, None]]:
        """(index, RequestOutput, readers.keep's list) of every prompt, as soon as it is finished; aborts the others
        when left.

        Raises:
            UsageError, EngineError: what went wrong, in a sentence.
        """
        return closing(self._stream(prompts, sampling, doing))

    def _stream(
        self, prompts: Sequence[TokenIds], sampling: dict[str, Any], doing: str
    ) -> Generator[tuple[int, Any, list[Any]], None, None]:
        engine = self.llm.llm_engine
        waiting = iter(enumerate(prompts))
        flying: dict[str, tuple[int, list[Any]]] = {}
        try:
            params = self.installed.module.SamplingParams(output_kind=self.installed.final_only, **sampling)
            while True:
                for index, prompt in itertools.islice(waiting, self.most_requests - len(flying)):
                    name = f"moe_eval-{next(self._ids)}"
                    # with its type it needs no further reading, and vLLM wants no other form here
                    inner = engine.add_request(name, {"type": "token", "prompt_token_ids": list(prompt)}, params)
                    flying[name] = index, readers.keep(engine, inner)
                if not flying:
                    return
                for output in engine.step():
                    if output.finished and output.request_id in flying:
                        index, kept = flying.pop(output.request_id)
                        yield index, output, kept
        except Exception as error:
            raise self._explained(error, doing) from error
        finally:
            if flying:
                with contextlib.suppress(Exception):  # an engine that broke down has none left to abort
                    engine.abort_request(list(flying))

    def all_at_once(self, prompts: Sequence[TokenIds], sampling: dict[str, Any], doing: str) -> list[Any]:
        """The RequestOutputs of all prompts, in order, from one call of LLM.generate: what is timed is vLLM alone."""
        try:
            params = self.installed.module.SamplingParams(**sampling)
            sent = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
            outputs: list[Any] = self.llm.generate(sent, params, use_tqdm=False)
        except Exception as error:
            raise self._explained(error, doing) from error
        return outputs

    def _explained(self, error: Exception, doing: str) -> Exception:
        return explained(error, self.installed.version, self.checkpoint, doing)

    def close(self) -> None:
        """Shut the engine core down and give its memory back."""
        llm, self.llm = self.llm, None
        if llm is None:
            return
        core = getattr(getattr(llm, "llm_engine", None), "engine_core", None)
        del llm
        if core is not None:
            with contextlib.suppress(Exception):  # one that broke down is as shut down as it can be
                core.shutdown()
        del core
        release()


def release() -> None:
    """Give back the memory of an engine that was shut down or never came to be.

    vLLM freezes the garbage collector's generations when it starts, and what is frozen is never collected.
    """
    try:
        importlib.import_module("vllm.distributed.parallel_state").cleanup_dist_env_and_memory()
    except Exception:  # what there is of vLLM may be broken
        gc.unfreeze()
        gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@dataclass
class VllmEngine:
    """A model on vLLM.

    Attributes:
        ends: tokens that end a completion.
        tells_experts: whether it was loaded with enable_return_routed_experts.
        profiles: where vLLM's own profiler writes, where one was configured.
    """

    facts: EngineFacts
    session: Session
    ends: frozenset[int]
    tells_experts: bool
    profiles: Path | None

    def __post_init__(self) -> None:
        # at the end of the process, or as soon as nobody holds this engine: the next one needs its memory
        weakref.finalize(self, self.session.close)

    def score(
        self, windows: Sequence[Window], top_k: int = 0, done: Callable[[int, WindowScores], None] = unheard
    ) -> list[WindowScores]:
        for window in windows:
            if len(window.inputs) > self.facts.max_length:
                raise ValueError(f"a window of {len(window.inputs)} tokens is longer than {self.facts.max_length}")
        scores: dict[int, WindowScores] = {}
        open_ones: list[int] = []

        def run(chosen: Sequence[int], k: int) -> None:
            sampling = {"max_tokens": 1, "temperature": 0.0, "detokenize": False}
            sampling |= {"prompt_logprobs": k, "flat_logprobs": True}
            prompts = [windows[index].context + windows[index].continuation for index in chosen]
            with self.session.stream(prompts, sampling, "scoring") as outputs:
                for at, output, kept in outputs:
                    index = chosen[at]
                    found = readers.scores(output, kept, windows[index], k)
                    if not k and readers.ambiguous(output, kept, windows[index]):
                        open_ones.append(index)
                        continue
                    scores[index] = replace(
                        found, top_ids=found.top_ids[:, :top_k], top_logprobs=found.top_logprobs[:, :top_k]
                    )
                    done(index, scores[index])

        # looking for the most probable token of every position costs a third of the time, and few windows need it
        run(range(len(windows)), top_k)
        if open_ones:
            run(open_ones, 1)
        return [scores[index] for index in range(len(windows))]

    def generate(
        self,
        prompts: Sequence[TokenIds],
        request: GenerationRequest,
        done: Callable[[int, Completion], None] = unheard,
    ) -> list[Completion]:
        self._check_lengths(prompts, request.max_new_tokens)
        sampling = self._sampling(request)
        completions: dict[int, Completion] = {}
        if request.timed:
            outputs = self.session.all_at_once(prompts, sampling, "generating with") if prompts else []
            # requests are queued one after the other; a batch's times count from the first
            queued = [output.metrics.queued_ts for output in outputs if output.metrics is not None]
            since = min(queued, default=None)
            for index, output in enumerate(outputs):
                completions[index] = self._completion(output, request, since)
                done(index, completions[index])
        else:
            with self.session.stream(prompts, sampling, "generating with") as stream:
                for index, output, _ in stream:
                    completions[index] = self._completion(output, request)
                    done(index, completions[index])
        return [completions[index] for index in range(len(prompts))]

    def _check_lengths(self, prompts: Sequence[TokenIds], new: int) -> None:
        for prompt in prompts:
            if len(prompt) + new > self.facts.max_length:
                raise ValueError(f"{len(prompt)} tokens and {new} new ones are more than {self.facts.max_length}")

    def _sampling(self, request: GenerationRequest) -> dict[str, Any]:
        found: dict[str, Any] = {
            "max_tokens": request.max_new_tokens,
            "temperature": request.temperature,
            "ignore_eos": request.ignore_eos,
            "detokenize": bool(request.stop),
        }
        if not request.ignore_eos:
            found["stop_token_ids"] = sorted(self.ends)
        if request.stop:
            found |= {"stop": list(request.stop), "include_stop_str_in_output": True}
        if request.temperature > 0:
            found |= {"top_p": request.top_p, "top_k": request.top_k}
        return found

    def _completion(self, output: Any, request: GenerationRequest, since: float | None = None) -> Completion:
        found = completed("vLLM", output.outputs[0], request, self.ends)
        return replace(found, times=readers.times(output, since)) if request.timed else found

    def routing(self, prompts: Sequence[TokenIds], max_new_tokens: int) -> list[npt.NDArray[np.int16]]:
        if not self.tells_experts:
            raise UsageError(
                "vLLM tells the routed experts only when loaded to: add enable_return_routed_experts=true and "
                "enforce_eager=true."
            )
        self._check_lengths(prompts, max_new_tokens)
        sampling = self._sampling(GenerationRequest(max_new_tokens, ignore_eos=True))
        chosen: dict[int, npt.NDArray[np.int16]] = {}
        with self.session.stream(prompts, sampling, "tracing the experts of") as outputs:
            for index, output, _ in outputs:
                chosen[index] = readers.experts(output, len(prompts[index]))
        return readers.routed_layers([chosen[index] for index in range(len(prompts))])

    @contextmanager
    def trace(self, target: Path) -> Iterator[TraceHandle]:
        in_process = self.facts.worker == "in_process"
        recording = tracing.in_process() if in_process else tracing.by_library(self.session.llm, self.profiles)
        with recording as export:
            yield TraceHandle(target)
        export(target)

    def close(self) -> None:
        self.session.close()
