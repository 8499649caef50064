"""The Transformers engine: any causal language model, on a CPU or one GPU."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
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
from moe_eval.engines.transformers import routing, shared_context, tracing
from moe_eval.engines.transformers.batching import batches_in_slabs
from moe_eval.engines.transformers.completions import StopTexts, Streamer, completion
from moe_eval.engines.transformers.layerwise import Layerwise
from moe_eval.engines.transformers.rows import Arriving, Rows, sent
from moe_eval.engines.transformers.threads import Threads
from moe_eval.errors import UsageError
from moe_eval.frozen import frozen
from moe_eval.machine import nsys
from moe_eval.records.labels import EngineFacts

_LAYERWISE_CPU_TOKENS = 1024  # padded, in a batch
log = logging.getLogger(__name__)

# arguments of `generate` that look at the prompt
_OF_PROMPT = {"repetition_penalty", "no_repeat_ngram_size", "encoder_repetition_penalty", "bad_words_ids", "min_length"}


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

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end a completion."""
        return requests.end_tokens(self.tokenizer, self.model.generation_config.eos_token_id)

    def score(
        self,
        windows: Sequence[Window],
        top_k: int = 0,
        done: Callable[[int, WindowScores], None] = unheard,
        ids: Sequence[PositionIds] | None = None,
    ) -> list[WindowScores]:
        requests.check_windows(windows, self.facts.max_length)
        # a GPU works on the next batch while the scores of the last one arrive
        job = _Job(windows, top_k, done, ids, most_arriving=int(self.model.device.type == "cuda"))
        questions, whole = shared_context.split(windows)
        if questions and not self._continues:
            questions, whole = [], list(range(len(windows)))
        with self.threads.bound():
            try:
                whole += self._run_questions(job, questions)
                self._run_whole(job, whole)
            finally:
                job.take(most_left=0)
        return [job.scores[index] for index in range(len(windows))]

    @cached_property
    def _continues(self) -> bool:
        return shared_context.continues(self.model)

    def _run_questions(self, job: _Job, questions: list[list[int]]) -> list[int]:
        """Score windows by context. Returns those that do not fit into memory with keys and values."""
        left: list[int] = []

        def run(batch: list[int]) -> None:
            chosen = list(chain.from_iterable(questions[key] for key in batch))
            try:
                read = [job.read(questions[key]) for key in batch]
                arriving = self._score_questions(read, job.top_k, job.ids_of(chosen))
            except torch.OutOfMemoryError:
                if len(batch) > 1:
                    raise
                left.extend(chosen)
                return
            job.keep(chosen, arriving)

        for batch in self._batches([len(job.windows[indices[0]].context) for indices in questions]):
            self._splitting(batch, run)
        return left

    @torch.inference_mode()
    def _score_questions(self, questions: list[list[Window]], top_k: int, ids: PositionIds | None) -> Arriving:
        self.threads.bind()
        hidden = shared_context.hidden(self.model, questions, self._batches)
        return sent(self.head, hidden, list(chain.from_iterable(questions)), top_k, ids)

    def _run_whole(self, job: _Job, indices: Sequence[int]) -> None:
        # windows that read the same tokens, such as one-token choices of a question, share one pass
        readers: dict[tuple[int, ...], list[int]] = {}
        for index in indices:
            readers.setdefault(job.windows[index].inputs, []).append(index)
        inputs = list(readers)

        def run(batch: list[int]) -> None:
            rows = [row for row, key in enumerate(batch) for _ in readers[inputs[key]]]
            chosen = list(chain.from_iterable(readers[inputs[key]] for key in batch))
            read = list(zip(rows, job.read(chosen), strict=True))
            arriving = self._score_batch([inputs[key] for key in batch], read, job.top_k, job.ids_of(chosen))
            job.keep(chosen, arriving)

        for batch in self._batches([len(key) for key in inputs]):
            self._splitting(batch, run)

    @torch.inference_mode()
    def _score_batch(
        self, inputs: list[tuple[int, ...]], readers: list[tuple[int, Window]], top_k: int, ids: PositionIds | None
    ) -> Arriving:
        self.threads.bind()
        rows = Rows.of(inputs, readers, self.model.device)
        return rows.sent(self.head, rows.hidden(self.model), top_k, ids)

    def by_layer(self, settings: EngineSettings) -> Layerwise:
        emulation = transformers_emulation.requested(settings)
        assert emulation is not None
        # larger temporaries beside recorded states come from fresh memory on a CPU, which is cleared every time
        most = None if self.model.device.type == "cuda" else _LAYERWISE_CPU_TOKENS
        tokens = min(filter(None, (self.max_tokens, most)), default=None)
        return Layerwise.start(
            self.model,
            self.head,
            self.facts,
            self.tokenizer,
            emulation=emulation,
            batches=lambda lengths: batches_in_slabs(lengths, tokens, self.max_rows),
            threads=self.threads,
        )

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        return batches_in_slabs(lengths, self.max_tokens, self.max_rows)

    def generate(
        self,
        prompts: Sequence[TokenIds],
        request: GenerationRequest,
        done: Callable[[int, Completion], None] = unheard,
    ) -> list[Completion]:
        if request.timed:
            self._refuse_speed()
        if request.seed is not None:
            torch.manual_seed(request.seed)
        completions: dict[int, Completion] = {}

        def run(batch: list[int]) -> None:
            results = self._generate_batch([prompts[index] for index in batch], request)
            for index, result in zip(batch, results, strict=True):
                completions[index] = result
                done(index, result)

        if request.timed:  # the batch is timed as a whole, so it is never split
            try:
                run(list(range(len(prompts))))
            except torch.OutOfMemoryError:
                raise UsageError(
                    f"{len(prompts)} sequences at once do not fit into the memory of {self.facts.device_name}. Give "
                    "fewer or shorter sequences, or use a larger GPU."
                ) from None
            return [completions[index] for index in range(len(prompts))]
        lengths = [len(prompt) + request.max_new_tokens for prompt in prompts]
        # Transformers would count the padding of a batch as text that was there before
        rows = 1 if _OF_PROMPT & set(request.further) else self.max_rows
        with self.threads.bound():
            for batch in batches_in_slabs(lengths, self.max_tokens, rows):
                self.threads.bind()
                self._splitting(batch, run)
        return [completions[index] for index in range(len(prompts))]

    @torch.inference_mode()
    def _generate_batch(self, prompts: list[TokenIds], request: GenerationRequest) -> list[Completion]:
        ends = sorted({*self.ends, *request.stop_tokens})
        pad = ends[0] if ends else 0
        width = max(map(len, prompts))
        tokens = torch.tensor([[*[pad] * (width - len(row)), *row] for row in prompts], device=self.model.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts], device=self.model.device)
        sampling: dict[str, object] = {"do_sample": False}
        if request.temperature > 0:
            sampling = {"do_sample": True, "temperature": request.temperature}
            sampling |= {"top_p": request.top_p, "top_k": request.top_k}
        texts = StopTexts(self.tokenizer, request.stop, width) if request.stop else None
        if texts:
            sampling |= {"stopping_criteria": [texts]}
        out = self.model.generate(
            input_ids=tokens,
            attention_mask=mask,
            max_new_tokens=request.max_new_tokens,
            min_new_tokens=request.max_new_tokens if request.ignore_eos else request.min_new_tokens or None,
            pad_token_id=pad,
            eos_token_id=ends or None,
            **sampling,
            **request.further,
        )
        sizes = texts.sizes if texts else {}
        return [
            completion(row[: sizes.get(at)], at in sizes, ends, request)
            for at, row in enumerate(out[:, width:].tolist())
        ]

    @torch.inference_mode()
    def stream(self, prompt: TokenIds, max_new_tokens: int, put: Callable[[int], None]) -> None:
        """Continue one prompt greedily to the exact length, and hand every token on as soon as it is there."""
        self._refuse_speed()
        tokens = torch.tensor([[*prompt]], device=self.model.device)
        ends = sorted(self.ends)
        self.model.generate(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=max_new_tokens,
            min_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=ends[0] if ends else 0,
            eos_token_id=ends or None,
            streamer=Streamer(put),
        )

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
        del self.model, self.head
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _splitting(self, batch: list[int], run: Callable[[list[int]], None]) -> None:
        """Run a batch. If the GPU's memory does not hold it, run its halves, and smaller batches from then on."""
        if self.max_rows is not None and len(batch) > self.max_rows:
            for first in range(0, len(batch), self.max_rows):
                self._splitting(batch[first : first + self.max_rows], run)
            return
        try:
            run(batch)
            return
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise UsageError(
                    f"One sequence does not fit into the memory of {self.facts.device_name}. Lower max_length, or use "
                    "a checkpoint of lower precision or a larger GPU."
                ) from None
        torch.cuda.empty_cache()
        middle = (len(batch) + 1) // 2
        self.max_rows = min(self.max_rows or middle, middle)
        log.warning("A batch of %d did not fit into the GPU's memory. Batches of %d follow.", len(batch), middle)
        self._splitting(batch[:middle], run)
        self._splitting(batch[middle:], run)


@frozen
class _Job:
    """A call of Engine.score: its arguments, batches of which the scores are arriving, and the scores by window."""

    windows: Sequence[Window]
    top_k: int
    done: Callable[[int, WindowScores], None]
    ids: Sequence[PositionIds] | None
    most_arriving: int
    arriving: list[tuple[Sequence[int], Arriving]] = field(default_factory=list)
    scores: dict[int, WindowScores] = field(default_factory=dict)

    def read(self, indices: Sequence[int]) -> list[Window]:
        return [self.windows[index] for index in indices]

    def ids_of(self, indices: Sequence[int]) -> PositionIds | None:
        return None if self.ids is None else np.concatenate([self.ids[index] for index in indices])

    def keep(self, indices: Sequence[int], arriving: Arriving) -> None:
        self.arriving.append((indices, arriving))
        self.take(self.most_arriving)

    def take(self, most_left: int) -> None:
        """Take the scores of the oldest batches."""
        while len(self.arriving) > most_left:
            indices, arriving = self.arriving.pop(0)
            for index, result in zip(indices, arriving(), strict=True):
                self.scores[index] = result
                self.done(index, result)
