"""The record of the quality evaluator: the perplexity of one arm over fixed windows."""

from __future__ import annotations

from dataclasses import field

from moe_eval.frozen import frozen
from moe_eval.records.labels import ArmLabels, Origin, Status
from moe_eval.stats import Divergence, Estimate

QUALITY_SCHEMA = 2
NO_NUMBERS = "are no numbers (NaN or infinity)"  # in the error of an arm with such scores


@frozen
class NoiseFloor:
    """How far another batch size moves the scores of one arm.

    Attributes:
        batch_size: of the second pass.
        ln_ppl_ratio: second pass over first. None where there is no interval, and `no_interval` says why.
    """

    batch_size: int
    ln_ppl_ratio: Estimate | None
    no_interval: str | None
    divergence: Divergence


@frozen
class QualityFigures:
    """The perplexity of one arm over its windows.

    Attributes:
        dataset_digest: of windows and documents.
        input_len: the most scored tokens of a window.
        num_chunks: windows that were scored, of `of_chunks` that the data set has.
        perplexity: exp(mean negative log-likelihood of the scored tokens). None where that is no number.
        per_chunk_ppls: the same of every window.
        tokens, documents: that were scored. `whole_documents`: those covered whole, which have `words` and `bytes`.
        word_ppl, byte_ppl, bits_per_byte: of lm-evaluation-harness, over whole documents. None where there is none.
    """

    dataset: str
    dataset_digest: str
    input_len: int
    num_chunks: int
    of_chunks: int
    perplexity: float | None
    per_chunk_ppls: tuple[float | None, ...]
    tokens: int
    documents: int
    whole_documents: int
    words: int
    bytes: int
    word_ppl: float | None
    byte_ppl: float | None
    bits_per_byte: float | None


@frozen
class QualityRecord:
    """One arm's quality, with all its labels.

    Attributes:
        precision: that was planned.
        figures: None unless the status is finished.
        noise_floor: of the arm that was scored a second time, by itself in batches of one.
        sm_version, gpu_name: of the first GPU. None on a CPU.
    """

    arm: str
    precision: str
    status: Status
    error: str | None = None
    emulated: bool | None = None
    engine: str | None = None
    moe_backend: str | None = None
    sm_version: str | None = None
    gpu_name: str | None = None
    fusion_disabled: bool = False
    figures: QualityFigures | None = None
    noise_floor: NoiseFloor | None = None
    labels: ArmLabels = field(default_factory=ArmLabels)
    origin: Origin = field(default_factory=Origin)
    schema: int = QUALITY_SCHEMA
