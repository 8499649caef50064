"""What a gate on servers needs of a run, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from moe_eval.comparison.gate_text import Condition
from moe_eval.errors import UsageError
from moe_eval.records.serving import ServingLimits


def check(
    conditions: Sequence[Condition], limits: ServingLimits | None, points: Collection[str], *, is_timed: bool
) -> None:
    """Refuse conditions on servers that a run will not decide.

    Args:
        limits: on a user's waiting. None where no server is driven. `points`: the names of load points.
        is_timed: fixed batches are timed as well, in which experts are counted.

    Raises:
        UsageError: with the option that is missing.
    """
    for condition in (entry for entry in conditions if entry.is_serving or (limits and entry.name == "verdict")):
        fix = ""
        if limits is None:
            fix = "no server is driven. Add serving to --evaluators"
        elif condition.point is not None and condition.point not in points:
            fix = f"the load points are {', '.join(points)}. Name one of these"
        elif condition.name == "users" and limits.tpot_ms is None:
            fix = "users in time need a limit. Give --tpot_ms"
        elif condition.name == "goodput" and not limits.is_set:
            fix = "requests in time need a limit. Give --ttft_ms or --tpot_ms"
        elif not is_timed:
            fix = "servers do not tell which experts they go through. Add latency to --evaluators, which counts them"
        if fix:
            raise UsageError(f"--gate has {condition.text!r}, and {fix}.")
