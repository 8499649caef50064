"""Concludes a run: compares its records, writes the comparison and the report, and ends as the gate says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moe_eval.comparison import gate, pairs, verdict
from moe_eval.exits import Ended
from moe_eval.records import by_arm, disk
from moe_eval.records.by_arm import ArmRecords
from moe_eval.records.comparison import ComparisonRecord
from moe_eval.records.verdicts import Rules
from moe_eval.report import write
from moe_eval.runner.folder import RunFolder
from moe_eval.runner.request import Command


def is_decided(folder: Path, command: Command, rules: Rules) -> bool:
    """Whether the records of the run in a folder decide every pair."""
    _, comparison = _compared(folder, command, rules)
    return comparison is not None and verdict.is_decided(comparison)


def _compared(folder: Path, command: Command, rules: Rules) -> tuple[list[ArmRecords], ComparisonRecord | None]:
    run = RunFolder(folder, command).run()
    arms = by_arm.read(folder, run.run_id)
    if not arms:
        return [], None
    return arms, pairs.compare(arms, runs=[run], rules=rules)


def conclude(folder: Path, command: Command, rules: Rules) -> tuple[list[ArmRecords], ComparisonRecord | None]:
    """Compare what the run in a folder has measured, and write the comparison and the report.

    Returns:
        The arms, the reference first, and their comparison. None where nothing could be measured.
    """
    files = RunFolder(folder, command)
    arms, comparison = _compared(folder, command, rules)
    if comparison is not None:
        disk.write_record(files.comparison_file, comparison)
        write.write(comparison, folder, files.page_file.name, files.text_file.name, files.run())
    return arms, comparison


def settle(comparison: ComparisonRecord, conditions: Sequence[gate.Condition], failed_tasks: int = 0) -> None:
    """Print what a gate makes of a comparison, and end with its code where it does not hold.

    Args:
        failed_tasks: of the run. Where there are any, nothing holds.
    """
    result, lines = gate.check(comparison, conditions, failed_tasks)
    print("\n".join(lines))
    if result is not gate.GateResult.HOLDS:
        raise Ended(int(result))
