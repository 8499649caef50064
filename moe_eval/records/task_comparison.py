"""Two arms' scores in a task of the harness, document by document."""

from __future__ import annotations

from enum import Enum

from moe_eval.frozen import frozen


class TaskVerdict(str, Enum):
    """What an arm loses in a task."""

    HOLDS = "holds"
    DROPS = "drops"
    OPEN = "open"
    NOT_JUDGED = "not judged"


@frozen
class Flips:
    """Answers that turned from right to wrong (`losses`), and from wrong to right (`gains`).

    Attributes:
        answers: that were compared, a document as often as both arms repeated it.
        p_value: two-sided, of McNemar's exact test. With repeats of its form for clusters: the exact test that changes
            the sign of all of a document's flips together.
        share_error: standard error over documents of the share of answers that flip. None without repeats.
        noise: the share of answers that flip between two repeats of the reference itself. None without repeats of it.
    """

    losses: int
    gains: int
    answers: int
    p_value: float
    share_error: float | None = None
    noise: float | None = None

    @property
    def share(self) -> float:
        """Of the answers that flip either way."""
        return (self.losses + self.gains) / self.answers


@frozen
class ChangedDocument:
    """A document whose score differs between the arms. A pair is of the reference and of the other arm.

    Attributes:
        task, number, repeat: see task_results. `is_loss`: whether the other arm is worse.
        prompt: its end. `target`, `answers` and `responses`: their beginnings. Samples have all of them.
        margins: by how many nats the right answer was likelier than any other. None of generated text.
    """

    task: str
    number: int
    repeat: int
    is_loss: bool
    prompt: str
    target: str
    answers: tuple[str, str]
    responses: tuple[str, str]
    scores: tuple[float, float]
    margins: tuple[float, float] | None = None


@frozen
class TaskComparison:
    """An arm against the reference in one metric of a task or a group.

    Attributes:
        metric: METRIC,FILTER. `is_deciding`: whether it is the first one, which sentences and gates are about.
        group: that the task is a part of. None where the task stands for itself.
        is_group: whether the row is a group's own.
        documents: that both arms answered, of `split_documents` that there are. None where that is not known.
        reference, other: the scores, over all repeats.
        reference_error, other_error: the harness's standard errors of these, else those over documents. None where
            there are none.
        difference: other - reference in the metric, ln(other / reference) where `is_logarithm`. `low` and `high` are
            its 95 % interval over documents. None where there is none.
        error, df: of Student's t that the interval is of. None where it is Tango's, of `flips`.
        is_share: whether all scores lie from 0 to 1.
        flips: of scores that are 0 or 1. None for others.
        recovery: share of the reference's score that is left, 1 for all. None where that says nothing.
        reason: what would settle an open verdict, or why there is none.
        changed: documents whose score differs, the most informative ones of either direction, losses first. Of what
            stands for itself and decides.
    """

    task: str
    metric: str
    is_deciding: bool
    group: str | None
    is_group: bool
    higher_is_better: bool | None
    documents: int
    reference: float | None
    other: float | None
    reference_error: float | None = None
    other_error: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    error: float | None = None
    df: float | None = None
    is_logarithm: bool = False
    is_share: bool = False
    flips: Flips | None = None
    recovery: float | None = None
    verdict: TaskVerdict = TaskVerdict.NOT_JUDGED
    reason: str = ""
    split_documents: int | None = None
    changed: tuple[ChangedDocument, ...] = ()

    @property
    def gain(self) -> tuple[float, float, float] | None:
        """The difference and its interval, positive where the arm is better. None without an interval."""
        if self.difference is None or self.low is None or self.high is None or self.higher_is_better is None:
            return None
        if self.higher_is_better:
            return self.difference, self.low, self.high
        return -self.difference, -self.high, -self.low
