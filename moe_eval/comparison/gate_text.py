"""Conditions on a comparison as they are written, such as "speed>=1.2,ln_ppl<=0.01"."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from typing import Literal

from moe_eval.comparison import serving_gate
from moe_eval.errors import UsageError, mended
from moe_eval.frozen import frozen

OF_SPEED = {"speed": "e2e_ms", "ttft": "ttft_ms", "tpot": "tpot_ms", "energy": "j_per_tok"}
OF_SCORES = ("ln_ppl", "kld", "top1")
_SYNONYMS = {"e2e": "speed", "ppl": "ln_ppl", "perplexity": "ln_ppl", "kl": "kld", "accuracy": "top1"}
_BOUND = r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
_NUMBER = re.compile(
    r"(?:(?P<arm>[^:\s]+):)?(?P<name>[A-Za-z0-9_]+)(?:\[b(?P<batch>[0-9]{1,9})\])?\s*(?P<sign>>=|<=)\s*"
    rf"(?P<bound>{_BOUND})"
)
_TASK = re.compile(rf"(?:(?P<arm>[^:\s]+):)?task:(?P<task>[^:\s<>=]+)\s*(?P<sign>>=|<=)\s*(?P<bound>{_BOUND})")
_SERVING = re.compile(
    r"(?:(?P<arm>[^:\s]+):)?serving:(?P<name>[A-Za-z0-9_]+)(?:\[(?P<point>[cr][0-9.]{1,12})\])?\s*"
    rf"(?P<sign>>=|<=)\s*(?P<bound>{_BOUND})"
)
_VERDICT = re.compile(r"(?:(?P<arm>[^:\s]+):)?verdict\s*==\s*pays")
_ALLOWED = (
    "A gate is a list such as speed>=1.2,ln_ppl<=0.01. Figures are speed, ttft and tpot (how many times faster), "
    "energy (how many times less), ln_ppl, kld and top1, each with >= or <= and a number. A figure of speed is for "
    "every shape, or for one batch size as speed[b8]. task:gsm8k>=-0.01 bounds the gain in a task of lm-eval, and "
    "flips<=0.02 the share of answers that flip in every task. serving:goodput>=1.1 bounds the most requests in time, "
    "and serving:output[c8]>=1.2 the throughput of 8 users. The verdict is verdict==pays. A condition is for every "
    "arm, or for one as fp8:speed>=1.2."
)


@frozen
class Condition:
    """One condition of a gate.

    Attributes:
        name: speed, ttft, tpot or energy (ratios reference / other), ln_ppl, kld (mean, in nats), top1 (0 to 1), task
            (the gain), flips (0 to 1), or verdict.
        task: that it is about. None for every task.
        point: the load point of a figure of servers. None for every one. `is_serving`: it is such a figure.
        arm: that it is about. None for every arm but the reference.
        batch_size: of the shapes that it is about. None for all.
        sign, bound: what the figure has to be. Meaningless for verdict, which has to be `pays`.
    """

    text: str
    name: str
    arm: str | None = None
    batch_size: int | None = None
    sign: Literal[">=", "<="] = ">="
    bound: float = 0.0
    task: str | None = None
    point: str | None = None
    is_serving: bool = False


def parse(text: str) -> tuple[Condition, ...]:
    """Read a gate such as "speed>=1.2,ln_ppl<=0.01".

    Raises:
        UsageError: with what is allowed.
    """
    return tuple(_condition(part.strip()) for part in text.split(","))


def _condition(part: str) -> Condition:
    pays = _VERDICT.fullmatch(part)
    if pays:
        return Condition("".join(part.split()), "verdict", pays["arm"])
    served = _SERVING.fullmatch(part)
    if served and served["name"] in serving_gate.FIGURES and math.isfinite(float(served["bound"])):
        side: Literal[">=", "<="] = ">=" if served["sign"] == ">=" else "<="
        text, bound = "".join(part.split()), float(served["bound"])
        return Condition(text, served["name"], served["arm"], None, side, bound, point=served["point"], is_serving=True)
    if served:
        fix = mended(served["name"], tuple(serving_gate.FIGURES), _ALLOWED)
        raise UsageError(f"--gate has {part!r}, and servers have no figure {served['name']}. {fix}")
    of_task = _TASK.fullmatch(part)
    match = of_task or _NUMBER.fullmatch(part)
    figures = (*OF_SPEED, *OF_SCORES, "flips")
    if match is None:
        raise UsageError(f"--gate has {part!r}. {mended(part, ('verdict==pays',), _ALLOWED)}")
    name = "task" if of_task else match["name"]
    if not of_task and name not in figures:
        meant = mended(_SYNONYMS.get(name, name), figures, _ALLOWED)
        raise UsageError(f"--gate has {part!r}, and there is no figure {name}. {meant}")
    batch = None if of_task else match["batch"]
    if batch and name not in OF_SPEED:
        raise UsageError(f"--gate has {part!r}, and {name} has no batch size. {_ALLOWED}")
    bound = float(match["bound"])
    if not math.isfinite(bound):
        raise UsageError(f"--gate has {part!r}, whose bound is not a number. {_ALLOWED}")
    if name in ("top1", "flips") and not 0 <= bound <= 1:
        raise UsageError(f"--gate has {part!r}, and {name} is a share from 0 to 1. {_ALLOWED}")
    sign: Literal[">=", "<="] = ">=" if match["sign"] == ">=" else "<="
    task = of_task["task"] if of_task else None
    return Condition("".join(part.split()), name, match["arm"], int(batch) if batch else None, sign, bound, task)


def check_arms(conditions: Sequence[Condition], arms: Collection[str]) -> None:
    """Refuse conditions on arms that there are none of.

    Raises:
        UsageError: with the arms that there are.
    """
    for condition in conditions:
        if condition.arm is not None and condition.arm not in arms:
            fix = mended(condition.arm, arms, "Name one of these.")
            raise UsageError(f"--gate has {condition.text!r}, and the arms are {', '.join(arms)}. {fix}")
