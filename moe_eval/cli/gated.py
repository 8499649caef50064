"""Ends a command as its gate says."""

from __future__ import annotations

from collections.abc import Sequence

from moe_eval.comparison import gate
from moe_eval.exits import Ended
from moe_eval.records.comparison import ComparisonRecord


def settle(comparison: ComparisonRecord, conditions: Sequence[gate.Condition], failed_tasks: int = 0) -> None:
    """Print what a gate makes of a comparison, and end with its code where it does not hold.

    Args:
        failed_tasks: of the run. Where there are any, nothing holds.
    """
    result, lines = gate.check(comparison, conditions, failed_tasks)
    print("\n".join(lines))
    if result is not gate.GateResult.HOLDS:
        raise Ended(int(result))
