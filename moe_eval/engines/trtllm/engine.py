"""TensorRT-LLM's LLM behind the Engine protocol."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from moe_eval.checkpoint import precision
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
from moe_eval.engines.trtllm import iterations, request_times, tracing
from moe_eval.engines.trtllm.installed import TRTLLM
from moe_eval.engines.trtllm.readers import ContextLogits, Reader
from moe_eval.engines.trtllm.selftest import Check
from moe_eval.engines.trtllm.session import Session
from moe_eval.errors import UsageError
from moe_eval.machine import nsys
from moe_eval.records.labels import EngineFacts
from moe_eval.records.samples import EngineSteps

log = logging.getLogger(__name__)

# Versions whose own sampler applies an argument, as a specifier of PEP 440. Sources: TensorRT-LLM, pull requests 16485
# and 16590, issue 9442, and features/sampling of the documentation of each version.
_APPLIED = {
    ">=1.3.0rc24": ("repetition_penalty", "presence_penalty", "frequency_penalty", "min_p", "top_p_decay"),
    "<0": ("no_repeat_ngram_size", "bad", "bad_token_ids", "top_p_min", "top_p_reset_ids"),
}


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
        self._refuse_ignored(request)
        completions: list[Completion] = []
        moments: list[tuple[float, ...] | None] = []
        sampling = requests.sampling(request, self.ends)
        if request.timed and "return_perf_metrics" in self.session.installed.sampling:
            sampling["return_perf_metrics"] = True
        for index, output in self.session.stream(prompts, sampling, "generating with"):
            completions.append(requests.completion(TRTLLM.title, output.outputs[0], request, self.ends))
            moments.append(request_times.moments(output.outputs[0]))
            if not request.timed:
                done(index, completions[-1])
        if request.timed:
            if self._trusts_times(prompts):
                for index, times in enumerate(request_times.relative(moments)):
                    completions[index] = replace(completions[index], times=times)
            for index, completion in enumerate(completions):
                done(index, completion)
        return completions

    def _refuse_ignored(self, request: GenerationRequest) -> None:
        """Refuse what SamplingParams takes and the sampler ignores without a word."""
        version, sampler = self.session.installed.version, str(self.facts.arguments.get("sampler_type", ""))
        for versions, names in _APPLIED.items():
            ignored = [name for name in names if name in request.further]
            if ignored and sampler.lower() != "trtllmsampler" and not precision.is_in(versions, version):
                raise UsageError(
                    f"The default sampler of TensorRT-LLM {version} ignores {ignored[0]}. Leave it out, or add "
                    "sampler_type=TRTLLMSampler to the model arguments where this version has it."
                )

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

    def steps(self) -> EngineSteps | None:
        return iterations.read(self.session.llm)

    def close(self) -> None:
        self.session.close()
