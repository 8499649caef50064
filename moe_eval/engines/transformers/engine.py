"""The Transformers engine: any causal language model, on a CPU or one GPU."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from moe_eval.data.window import Window
from moe_eval.engines import requests, torch_profiler
from moe_eval.engines.base import (
    Completion,
    EngineSettings,
    GenerationRequest,
    PositionIds,
    TokenIds,
    TraceHandle,
    WindowScores,
    unheard,
)
from moe_eval.engines.head import Head
from moe_eval.engines.transformers import emulation as transformers_emulation
from moe_eval.engines.transformers import routing, tracing
from moe_eval.engines.transformers.batching import Batches, batches_in_slabs
from moe_eval.engines.transformers.generation import Generation
from moe_eval.engines.transformers.layerwise import Layerwise
from moe_eval.engines.transformers.scoring import Scoring
from moe_eval.engines.transformers.threads import Threads
from moe_eval.errors import UsageError
from moe_eval.machine import nsys
from moe_eval.records.labels import EngineFacts

_LAYERWISE_CPU_TOKENS = 1024  # padded, in a batch


@dataclass
class TransformersEngine:
    """A model of Transformers behind the Engine protocol."""

    facts: EngineFacts
    model: Any
    tokenizer: Any
    head: Head
    max_rows: int | None
    max_tokens: int | None
    threads: Threads = field(default_factory=Threads)

    @cached_property
    def _batches(self) -> Batches:
        return Batches(self.max_tokens, self.max_rows, self.facts.device_name)

    @cached_property
    def _scoring(self) -> Scoring:
        return Scoring(self.model, self.head, self._batches, self.threads)

    @cached_property
    def _generation(self) -> Generation:
        return Generation(self.model, self.tokenizer, self._batches, self.threads)

    def score(
        self,
        windows: Sequence[Window],
        top_k: int = 0,
        done: Callable[[int, WindowScores], None] = unheard,
        ids: Sequence[PositionIds] | None = None,
    ) -> list[WindowScores]:
        requests.check_windows(windows, self.facts.max_length)
        return self._scoring.score(windows, top_k, done, ids)

    def by_layer(self, settings: EngineSettings) -> Layerwise:
        emulation = transformers_emulation.requested(settings)
        assert emulation is not None
        # larger temporaries beside recorded states come from fresh memory on a CPU, which is cleared every time
        cpu_tokens = None if self.model.device.type == "cuda" else _LAYERWISE_CPU_TOKENS
        tokens = min(filter(None, (self.max_tokens, cpu_tokens)), default=None)
        return Layerwise.start(
            self.model,
            self.head,
            self.facts,
            self.tokenizer,
            emulation=emulation,
            batches=lambda lengths: batches_in_slabs(lengths, tokens, self._batches.max_rows),
            threads=self.threads,
        )

    def generate(
        self,
        prompts: Sequence[TokenIds],
        request: GenerationRequest,
        done: Callable[[int, Completion], None] = unheard,
    ) -> list[Completion]:
        if request.timed:
            self._refuse_speed()
        return self._generation.generate(prompts, request, done)

    def stream(self, prompt: TokenIds, max_new_tokens: int, put: Callable[[int], None]) -> None:
        """Continue one prompt greedily to the exact length, and hand every token on as soon as it is there."""
        self._refuse_speed()
        self._generation.stream(prompt, max_new_tokens, put)

    def routing(self, prompts: Sequence[TokenIds], max_new_tokens: int) -> list[npt.NDArray[np.int16]]:
        routing.experts(self.model, [*prompts[0]])  # what cannot tell ends here
        completions = self.generate(prompts, GenerationRequest(max_new_tokens=max_new_tokens, ignore_eos=True))
        return [
            routing.experts(self.model, [*prompt, *completion.token_ids[:-1]]).numpy()
            for prompt, completion in zip(prompts, completions, strict=True)
        ]

    @contextmanager
    def trace(self, target: Path) -> Iterator[TraceHandle]:
        self._refuse_speed()
        recording = torch_profiler.record(target, cuda=self.model.device.type == "cuda", all_threads=False)
        with recording, tracing.annotated(self.model):
            yield TraceHandle(target)

    @contextmanager
    def capture(self, name: str) -> Iterator[None]:
        self._refuse_speed()
        with nsys.capture(name), tracing.annotated(self.model, torch.cuda.nvtx.range):
            yield

    def _refuse_speed(self) -> None:
        if self.facts.emulated:
            raise UsageError(
                f"{self.facts.precision} is emulated here, with more and slower kernels than the precision itself has, "
                "so its speed is not measured. Use an engine that runs it natively."
            )

    def close(self) -> None:
        for name in ("model", "head", "_scoring", "_generation"):  # all that hold weights
            vars(self).pop(name, None)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
