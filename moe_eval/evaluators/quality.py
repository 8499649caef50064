"""The quality evaluator: the log-probabilities that one arm gives the tokens of fixed windows, and their record."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_eval import stats
from moe_eval.data.scoring_windows import WindowSet
from moe_eval.engines.base import Engine, WindowScores, unheard
from moe_eval.errors import UsageError
from moe_eval.records.labels import ArmLabels, Origin, Status
from moe_eval.records.quality import NoiseFloor, QualityFigures, QualityRecord

TOP_K = 64
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Scores:
    """What one arm said of every scored token of its windows, in order.

    Attributes:
        logprobs: natural logs, float32, shape (tokens,).
        lengths: scored tokens of every window, int64; `documents` is every window's document.
        top_ids, top_logprobs: the most probable tokens, int32 and float32, shape (tokens, k).
        digest: of the windows (see WindowSet).
    """

    logprobs: Array
    lengths: Array
    documents: Array
    top_ids: Array
    top_logprobs: Array
    digest: str

    def by_document(self) -> list[Array]:
        """The log-probabilities of every document."""
        starts = np.flatnonzero(np.diff(self.documents)) + 1
        ends = np.cumsum(self.lengths)[starts - 1]
        return list(np.split(self.logprobs, ends))

    def by_window(self) -> list[Array]:
        """The log-probabilities of every window."""
        return list(np.split(self.logprobs, np.cumsum(self.lengths)[:-1]))

    def save(self, file: Path) -> None:
        """Write them as an .npz file, which is on the disk when this returns."""
        with file.open("wb") as out:
            np.savez_compressed(out, **{**vars(self), "digest": np.array(self.digest)})
            out.flush()
            os.fsync(out.fileno())

    @classmethod
    def load(cls, file: Path) -> Scores:
        """Read what `save` wrote."""
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in cls.__dataclass_fields__}
        return cls(**{**arrays, "digest": str(arrays["digest"])})


def measure(
    engine: Engine,
    windows: WindowSet,
    top_k: int = TOP_K,
    done: Callable[[int, WindowScores], None] = unheard,
    *,
    alone: bool = False,
) -> Scores:
    """Score the windows.

    Args:
        alone: one at a time, whatever batch the engine would make of them.

    Raises:
        UsageError: the windows are longer than the engine's.
    """
    if windows.input_len > engine.facts.max_length:
        raise UsageError(
            f"--input_len {windows.input_len} is longer than the window of {engine.facts.max_length} tokens. Give at "
            f"most {engine.facts.max_length}."
        )
    scores = []
    for group in [[window] for window in windows.windows] if alone else [windows.windows]:
        scores += engine.score(group, top_k, done)
    return Scores(
        logprobs=np.concatenate([window.logprobs for window in scores]),
        lengths=np.array([len(window.logprobs) for window in scores], dtype=np.int64),
        documents=np.array(windows.documents, dtype=np.int64),
        top_ids=np.concatenate([window.top_ids for window in scores]).astype(np.int32),
        top_logprobs=np.concatenate([window.top_logprobs for window in scores]),
        digest=windows.digest,
    )


def figures(scores: Scores, windows: WindowSet, dataset: str) -> QualityFigures:
    """One arm's own figures.

    Word and byte figures are lm-evaluation-harness's, over the documents that are covered whole.
    """
    by_document = zip(dict.fromkeys(windows.documents), scores.by_document(), strict=True)
    whole = [logprobs for index, logprobs in by_document if index in windows.word_counts]
    word_count, size = sum(windows.word_counts.values()), sum(windows.byte_counts.values())
    byte_ppl = stats.perplexity(whole, size) if whole else None
    return QualityFigures(
        dataset=dataset,
        dataset_digest=windows.digest,
        input_len=windows.input_len,
        num_chunks=len(windows.windows),
        of_chunks=windows.total,
        perplexity=stats.perplexity([scores.logprobs]),
        per_chunk_ppls=tuple(stats.perplexity([logprobs]) for logprobs in scores.by_window()),
        tokens=len(scores.logprobs),
        documents=len(set(windows.documents)),
        whole_documents=len(whole),
        words=word_count,
        bytes=size,
        word_ppl=stats.perplexity(whole, word_count) if whole else None,
        byte_ppl=byte_ppl,
        bits_per_byte=None if byte_ppl is None else float(np.log2(byte_ppl)),
    )


def noise_floor(scores: Scores, alone: Scores, batch_size: int) -> NoiseFloor | None:
    """How far another batch size moves the scores of one arm.

    Args:
        alone: the same windows in batches of `batch_size`.

    Returns:
        None where a score is no number.

    Raises:
        UsageError: they did not score the same windows.
    """
    if scores.digest != alone.digest:
        raise UsageError("Two passes of one arm did not score the same windows. Measure them again.")
    if not (np.isfinite(scores.logprobs).all() and np.isfinite(alone.logprobs).all()):
        return None
    ratio, no_interval = None, None
    try:
        ratio = stats.ln_ratio(scores.by_document(), alone.by_document())
    except UsageError as error:
        no_interval = str(error)
    divergence = stats.divergence(scores.top_ids, scores.top_logprobs, alone.top_ids, alone.top_logprobs)
    return NoiseFloor(batch_size, ratio, no_interval, divergence)


def record(
    arm: str,
    precision: str,
    status: Status,
    error: str | None = None,
    *,
    origin: Origin,
    labels: ArmLabels,
    figures: QualityFigures | None,
    noise_floor: NoiseFloor | None = None,
    fusion_disabled: bool,
) -> QualityRecord:
    """One arm's record.

    Args:
        precision: that was planned.
        figures: None where nothing was scored.
    """
    engine, gpus = labels.engine, origin.machine.gpus if origin.machine else ()
    gpu = gpus[0] if gpus and (engine is None or engine.device != "cpu") else None
    return QualityRecord(
        arm=arm,
        precision=precision,
        status=status,
        error=error,
        emulated=engine.emulated if engine else None,
        engine=engine.name if engine else None,
        moe_backend=engine.moe_backend_observed if engine else None,
        sm_version=gpu.capability if gpu else None,
        gpu_name=gpu.name if gpu else None,
        fusion_disabled=fusion_disabled,
        figures=figures,
        noise_floor=noise_floor,
        labels=labels,
        origin=origin,
    )
