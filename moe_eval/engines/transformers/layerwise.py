"""Scores of a model of Transformers with the experts of one layer quantised, from the experts on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from moe_eval.data.window import Window
from moe_eval.emulation.layers import ExpertLayer, expert_layers
from moe_eval.emulation.model import Emulation
from moe_eval.engines.base import ExpertsOfLayer, PositionIds, Variant, WindowScores
from moe_eval.engines.head import Head
from moe_eval.engines.transformers import emulation as transformers_emulation
from moe_eval.engines.transformers.replay import Replay, States
from moe_eval.engines.transformers.rows import Rows
from moe_eval.engines.transformers.threads import Threads
from moe_eval.errors import UsageError
from moe_eval.frozen import frozen
from moe_eval.records.labels import EngineFacts

STATE_BYTES = 1 << 30  # of recorded states at once. They lie where the model does
Batches = Callable[[Sequence[int]], Iterable[list[int]]]


@frozen
class _Pass:
    """An unquantised pass of a batch of windows, and its most probable tokens at every position."""

    windows: list[int]
    rows: Rows
    states: States
    top_ids: PositionIds


@frozen
class Layerwise:
    """A calibrated model whose experts are quantised a layer at a time. Attributes are as of base.LayerwiseArm."""

    facts: EngineFacts
    layers: Sequence[ExpertsOfLayer]
    _model: Any
    _head: Head
    _emulated: Sequence[ExpertLayer]
    _replay: Replay
    _batches: Batches
    _threads: Threads

    @classmethod
    def start(
        cls,
        model: Any,
        head: Head,
        facts: EngineFacts,
        tokenizer: Any,
        *,
        emulation: Emulation,
        batches: Batches,
        threads: Threads,
    ) -> Layerwise:
        """Calibrate a loaded model.

        Args:
            facts: of the model without emulation.
            batches: indices of sequences by batch, from their lengths.

        Raises:
            UsageError: it has no experts, or layers that cannot be run by themselves.
        """
        applied = transformers_emulation.prepare(model, emulation, tokenizer, facts.max_length)
        emulated = expert_layers(applied)
        labels = transformers_emulation.labels(applied, facts.max_length)
        del labels["emulated_matrices"]  # differs by variant
        return cls(
            replace(facts, precision=emulation.precision, emulated=True, arguments=labels),
            [
                ExpertsOfLayer(
                    layer=layer.index,
                    module=layer.name,
                    experts=layer.experts,
                    weights=layer.weights,
                    bytes_per_weight=head.weight.element_size(),
                    is_fused=layer.fused is not None,
                )
                for layer in emulated
            ],
            model,
            head,
            emulated,
            Replay(model, emulated),
            batches,
            threads,
        )

    @torch.inference_mode()
    def score(
        self,
        windows: Sequence[Window],
        variants: Sequence[Variant],
        top_k: int,
        done: Callable[[Variant | None, int, WindowScores], None],
    ) -> npt.NDArray[np.int64]:
        """As base.LayerwiseArm.score. Every window is read once unquantised, and by each variant from its experts on.

        So many batches are recorded at once as STATE_BYTES hold, and at least one.
        """
        counts = np.zeros((len(self.layers), max(layer.experts for layer in self.layers)), np.int64)
        try:
            with self._threads.bound():
                for slab in self._slabs(windows):
                    passes = [self._unquantised(batch, windows, top_k, done, counts) for batch in slab]
                    for variant in variants:
                        self._quantised(variant, passes, done)
        except torch.OutOfMemoryError:
            raise UsageError(
                f"A batch and its states do not fit into the memory of {self.facts.device_name}. Give a lower "
                "max_tokens_per_batch in --model_args."
            ) from None
        return counts

    @torch.inference_mode()
    def joint(self, windows: Sequence[Window], layers: Sequence[int], ids: Sequence[PositionIds]) -> list[WindowScores]:
        """As base.LayerwiseArm.joint."""
        scores: dict[int, WindowScores] = {}
        with self._threads.bound(), ExitStack() as stack:
            for layer in layers:
                stack.enter_context(self._of(layer).quantised())
            for batch in self._batches([len(window.inputs) for window in windows]):
                self._threads.bind()
                rows = self._rows(batch, windows)
                of_batch = np.concatenate([ids[index] for index in batch])
                scores |= zip(batch, rows.scores(self._head, rows.hidden(self._model), 1, of_batch), strict=True)
        return [scores[index] for index in range(len(windows))]

    def _of(self, layer: int) -> ExpertLayer:
        return next(entry for entry in self._emulated if entry.index == layer)

    def _slabs(self, windows: Sequence[Window]) -> Iterator[list[list[int]]]:
        """Batches of which the states are kept at once."""
        width = self._head.weight.shape[1] * self._head.weight.element_size()
        fitting = STATE_BYTES // (width * self._replay.states_per_token)
        slab: list[list[int]] = []
        tokens = 0
        for batch in self._batches([len(window.inputs) for window in windows]):
            size = len(batch) * max(len(windows[index].inputs) for index in batch)
            if slab and tokens + size > fitting:
                yield slab
                slab, tokens = [], 0
            slab.append(batch)
            tokens += size
        if slab:
            yield slab

    def _rows(self, batch: Sequence[int], windows: Sequence[Window]) -> Rows:
        read = [windows[index] for index in batch]
        return Rows.of([window.inputs for window in read], list(enumerate(read)), self._model.device)

    def _unquantised(
        self,
        batch: list[int],
        windows: Sequence[Window],
        top_k: int,
        done: Callable[[Variant | None, int, WindowScores], None],
        counts: npt.NDArray[np.int64],
    ) -> _Pass:
        self._threads.bind()
        rows = self._rows(batch, windows)
        hooks = [
            layer.fused.register_forward_pre_hook(_counting(row, rows.is_real.flatten()))
            for row, layer in zip(counts, self._emulated, strict=True)
            if layer.fused is not None
        ]
        try:
            with self._replay.recorded() as states:
                hidden = rows.hidden(self._model)
        finally:
            for hook in hooks:
                hook.remove()
        scores = rows.scores(self._head, hidden, top_k)
        for index, window in zip(batch, scores, strict=True):
            done(None, index, window)
        return _Pass(batch, rows, states, np.concatenate([window.top_ids for window in scores]))

    def _quantised(
        self, variant: Variant, passes: Sequence[_Pass], done: Callable[[Variant | None, int, WindowScores], None]
    ) -> None:
        with self._of(variant.layer).quantised(variant.expert):
            for entry in passes:
                self._threads.bind()
                with self._replay.started(entry.states, variant.layer):
                    hidden = entry.rows.hidden(self._model)
                scores = entry.rows.scores(self._head, hidden, 1, entry.top_ids)
                for index, window in zip(entry.windows, scores, strict=True):
                    done(variant, index, window)


def _counting(counts: npt.NDArray[np.int64], is_real: Tensor) -> Any:
    """A hook of fused experts, called with (hidden states, experts, weights), that counts the tokens of each."""

    def count(_module: object, args: tuple[Tensor, Tensor, Tensor]) -> None:
        tokens = torch.bincount(args[1][is_real].flatten(), minlength=len(counts)).cpu().numpy()
        counts[: len(tokens)] += tokens[: len(counts)]

    return count
