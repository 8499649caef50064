"""Verdicts, and the rules by which they are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Literal


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


DecidingTime = Literal["e2e", "ttft", "tpot", "output_tok_s"]
TIME_OF: Mapping[DecidingTime, str] = {"e2e": "e2e_ms", "ttft": "ttft_ms", "tpot": "tpot_ms", "output_tok_s": "e2e_ms"}


@dataclass(frozen=True)
class Rules:
    """By which rules verdicts are made.

    Attributes:
        min_gain: the least gain that counts, 0.01 for 1 %.
        decide_on: the time that decides. `output_tok_s` goes by the same ratio as `e2e`.
    """

    min_gain: float = 0.01
    decide_on: DecidingTime = "e2e"
