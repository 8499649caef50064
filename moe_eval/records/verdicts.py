"""Verdicts, and the rules by which they are made."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Literal

from moe_eval.frozen import frozen


class Verdict(str, Enum):
    """What a pair of arms, or one shape of it, comes to. A quick look is none: there are too few loads."""

    PAYS = "pays"
    SLOWER = "slower"
    NO_DIFFERENCE = "no worthwhile difference"
    OPEN = "open"
    BROKEN = "broken"
    NOT_COMPARABLE = "not comparable"
    QUICK_LOOK = "quick look"


class QualityVerdict(str, Enum):
    """What an arm costs in quality."""

    NO_COST = "costs nothing beyond the noise floor"
    COSTS = "costs"
    OPEN = "open"
    BROKEN = "broken"
    NOT_JUDGED = "not judged"


DecidingTime = Literal["e2e", "ttft", "tpot", "output_tok_s", "output_tok_s_per_gpu"]
TIME_OF: Mapping[DecidingTime, str] = {
    "e2e": "e2e_ms",
    "ttft": "ttft_ms",
    "tpot": "tpot_ms",
    "output_tok_s": "e2e_ms",
    "output_tok_s_per_gpu": "e2e_ms",
}


@frozen
class Rules:
    """By which rules verdicts are made.

    Attributes:
        min_gain: the least gain that counts, 0.01 for 1 %.
        decide_on: the time that decides. `output_tok_s` goes by the same ratio as `e2e`. `output_tok_s_per_gpu` goes by
            that ratio times the ratio of the numbers of GPUs.
        per_gpu: whether `output_tok_s_per_gpu` decides in place of `e2e` where the arms have other numbers of GPUs.
        max_drop: the largest loss in a task that is allowed, in its metric, and in ln(perplexity).
        price_per_gpu_hour: by which a million output tokens cost something. None for no price. It decides nothing.
    """

    min_gain: float = 0.01
    decide_on: DecidingTime = "e2e"
    per_gpu: bool = True
    price_per_gpu_hour: float | None = None
    max_drop: float = 0.01

    @property
    def is_per_gpu(self) -> bool:
        """Whether output per GPU decides where the arms have other numbers of GPUs."""
        return self.decide_on == "output_tok_s_per_gpu" or (self.decide_on == "e2e" and self.per_gpu)
