"""The quality evaluator: the log-probabilities that one arm gives the tokens of fixed windows, and their record."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_eval import stats
from moe_eval.data.scoring_windows import WindowSet
from moe_eval.engines.base import Engine, WindowScores, unheard
from moe_eval.errors import EngineError, UsageError
from moe_eval.evaluators import divergence
from moe_eval.frozen import frozen
from moe_eval.outside import files
from moe_eval.records.labels import ArmLabels, Origin, Status
from moe_eval.records.quality import NO_NUMBERS, NoiseFloor, QualityFigures, QualityRecord
from moe_eval.stats import Divergence

TOP_K = 128  # with 64 the divergence of the shipped model's NVFP4 misses 15 % of that over the whole vocabulary
Array = npt.NDArray[Any]


@frozen
class Scores:
    """What one arm said of every scored token of its windows, in order.

    Attributes:
        logprobs: natural logs, float32, shape (tokens,).
        lengths: scored tokens of every window, int64; `documents` is every window's document.
        top_ids, top_logprobs: the most probable tokens, int32 and float32, shape (tokens, k).
        digest: of the windows (see WindowSet).
        of_reference: log-probabilities of the reference's most probable tokens, float32, shape (tokens, k). Its second
            axis is empty where they were not scored.
        reference_digest: of these tokens (see ids_digest). "" where they were not scored.
    """

    logprobs: Array
    lengths: Array
    documents: Array
    top_ids: Array
    top_logprobs: Array
    digest: str
    of_reference: Array = field(default_factory=lambda: np.empty((0, 0), np.float32))
    reference_digest: str = ""

    def by_document(self) -> list[Array]:
        """The log-probabilities of every document."""
        return list(np.split(self.logprobs, np.cumsum(self.document_lengths)[:-1]))

    @property
    def document_lengths(self) -> list[int]:
        """Scored tokens of every document."""
        starts = np.flatnonzero(np.diff(self.documents, prepend=-1))
        return [int(length) for length in np.add.reduceat(self.lengths, starts)]

    def by_window(self) -> list[Array]:
        """The log-probabilities of every window."""
        return list(np.split(self.logprobs, np.cumsum(self.lengths)[:-1]))

    @property
    def ids_digest(self) -> str:
        """16 hexadecimal digits of SHA-256 over `top_ids`."""
        return hashlib.sha256(self.top_ids.astype("<i4").tobytes()).hexdigest()[:16]

    def check(self) -> None:
        """Refuse scores that are no numbers.

        Raises:
            EngineError: with the place of the first one.
        """
        parts = (self.logprobs[:, None], self.top_logprobs, self.of_reference)
        broken = [~np.isfinite(part).all(axis=1) for part in parts if part.size]
        places = np.flatnonzero(np.any(broken, axis=0))
        if not len(places):
            return
        ends = np.cumsum(self.lengths)
        window = int(np.searchsorted(ends, places[0], side="right"))
        token = int(places[0] - ends[window] + self.lengths[window])
        raise EngineError(
            f"The scores of {len(places):,} of {len(self.logprobs):,} tokens {NO_NUMBERS}. The "
            f"first is token {token} of window {window} in document {self.documents[window]}, all counted from 0. Look "
            "for an overflow: try another --moe_backend or checkpoint."
        )

    def save(self, file: Path) -> None:
        """Write them as an .npz file, which is on the disk when this returns."""
        with file.open("wb") as out:
            arrays: dict[str, Any] = {name: np.asarray(part) for name, part in vars(self).items()}
            np.savez_compressed(out, **arrays)
            out.flush()
            os.fsync(out.fileno())

    @classmethod
    def load(cls, file: Path) -> Scores:
        """Read what `save` wrote.

        Raises:
            UsageError: it cannot be read, is damaged, or holds arrays that do not fit each other.
        """
        fix = "Run moe-eval ppl again, or take the file out of the folder."
        with files.opened(file, fix) as content:
            try:
                with np.load(content, allow_pickle=False) as archive:
                    arrays = dict(archive)
                texts = {name: str(arrays[name]) for name in ("digest", "reference_digest") if name in arrays}
                scores = cls(**{**arrays, **texts})
                scores._check_shapes()
            # zipfile, zlib and NumPy raise whatever they like at a damaged archive
            except Exception as error:
                raise UsageError(f"{file} is damaged ({' '.join(str(error).split())[:200]}). {fix}") from None
        return scores

    def _check_shapes(self) -> None:
        tokens, windows = len(self.logprobs), len(self.lengths)
        numbers = {"logprobs": "f", "lengths": "iu", "documents": "iu", "top_ids": "iu", "top_logprobs": "f"}
        shapes = {"logprobs": (tokens,), "lengths": (windows,), "documents": (windows,)}
        shapes |= dict.fromkeys(("top_ids", "top_logprobs"), (tokens, *self.top_ids.shape[1:2]))
        for name, kinds in numbers.items():
            array = getattr(self, name)
            if array.shape != shapes[name] or array.dtype.kind not in kinds:
                raise ValueError(f"{name} does not fit")
        if not windows or (self.lengths < 0).any() or self.lengths.sum() != tokens:
            raise ValueError("lengths do not fit")


def measure(
    engine: Engine,
    windows: WindowSet,
    top_k: int = TOP_K,
    done: Callable[[int, WindowScores], None] = unheard,
    *,
    alone: bool = False,
    reference: Scores | None = None,
) -> Scores:
    """Score the windows.

    Args:
        alone: one at a time, whatever batch the engine would make of them.
        reference: the scores of another arm. Its most probable tokens are scored as well, where they are of the same
            windows and the engine can.

    Raises:
        UsageError: the windows are longer than the engine's.
    """
    if windows.input_len > engine.facts.max_length:
        raise UsageError(
            f"--input_len {windows.input_len} is longer than the window of {engine.facts.max_length} tokens. Give at "
            f"most {engine.facts.max_length}."
        )
    if reference is not None and (reference.digest != windows.digest or not engine.facts.scores_ids):
        reference = None
    count = len(windows.windows)
    ids = np.split(reference.top_ids, np.cumsum(reference.lengths)[:-1]) if reference else None
    scores = []
    for part in [slice(at, at + 1) for at in range(count)] if alone else [slice(count)]:
        scores += engine.score(windows.windows[part], top_k, done, ids[part] if ids else None)
    return Scores(
        logprobs=np.concatenate([window.logprobs for window in scores]),
        lengths=np.array([len(window.logprobs) for window in scores], dtype=np.int64),
        documents=np.array(windows.documents, dtype=np.int64),
        top_ids=np.concatenate([window.top_ids for window in scores]).astype(np.int32),
        top_logprobs=np.concatenate([window.top_logprobs for window in scores]),
        digest=windows.digest,
        of_reference=np.concatenate([window.of_ids for window in scores]),
        reference_digest=reference.ids_digest if reference else "",
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


def compare(reference: Scores, candidate: Scores) -> Divergence:
    """The divergence of scores from those of a reference, which are of the same windows."""
    is_of_reference = candidate.reference_digest == reference.ids_digest
    return divergence.between(
        reference.top_ids,
        reference.top_logprobs,
        candidate.top_ids,
        candidate.top_logprobs,
        documents=reference.document_lengths,
        of_reference_ids=candidate.of_reference if is_of_reference else None,
    )


def noise_floor(scores: Scores, alone: Scores, batch_size: int) -> NoiseFloor:
    """How far another batch size moves the scores of one arm.

    Args:
        alone: the same windows in batches of `batch_size`.

    Raises:
        UsageError: they did not score the same windows.
    """
    if scores.digest != alone.digest:
        raise UsageError("Two passes of one arm did not score the same windows. Measure them again.")
    ratio, no_interval = None, None
    try:
        ratio = stats.ln_ratio(scores.by_document(), alone.by_document())
    except UsageError as error:
        no_interval = str(error)
    return NoiseFloor(batch_size, ratio, no_interval, compare(scores, alone))


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
