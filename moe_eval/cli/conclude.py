"""Concludes a run: compares its records, writes the comparison and the report, and prints what a gate makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from moe_eval.cli.output import Conclusion
from moe_eval.comparison import gate, gate_text, pairs, verdict, verdict_wording
from moe_eval.exits import code
from moe_eval.outside.words import lines
from moe_eval.records import by_arm, disk
from moe_eval.records.by_arm import ArmRecords
from moe_eval.records.comparison import ComparisonRecord
from moe_eval.records.verdicts import Rules
from moe_eval.report import overview, tile_table, write
from moe_eval.report.console import print_renderable
from moe_eval.report.renderable import Renderable

if TYPE_CHECKING:
    from moe_eval.runner.request import Command
    from moe_eval.tracking import Logged


def is_decided(folder: Path, command: Command, rules: Rules) -> bool:
    """Whether the records of the run in a folder decide every pair."""
    _, comparison = _compared(folder, command, rules)
    return comparison is not None and verdict.is_decided(comparison)


def _compared(folder: Path, command: Command, rules: Rules) -> tuple[list[ArmRecords], ComparisonRecord | None]:
    from moe_eval.runner.folder import RunFolder

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
    from moe_eval.runner.folder import RunFolder

    files = RunFolder(folder, command)
    arms, comparison = _compared(folder, command, rules)
    if comparison is not None:
        disk.write_record(files.comparison_file, comparison)
        write.write(comparison, folder, files.page_file.name, files.text_file.name, files.run())
    return arms, comparison


def concluded(
    comparison: ComparisonRecord,
    conditions: Sequence[gate_text.Condition] = (),
    *,
    page: Path | None = None,
    logged: Logged | None = None,
    table: Renderable | None = None,
    failures: Sequence[str] = (),
    errors: Sequence[Exception] = (),
) -> Conclusion:
    """Print a comparison, what a gate makes of it, and where the rest is.

    Args:
        page: the report. None where nothing was measured. `logged`: the run in MLflow.
        table: to print before.
        failures: a sentence for every task of the run that failed. Where there are any, no gate holds.
        errors: what went wrong. The exit code is that of the first, or that of the gate where there is one.
    """
    result, reasons = gate.check(comparison, conditions, len(failures)) if conditions else (gate.GateResult.HOLDS, [])
    if page is not None:
        for renderable in (table, tile_table.render(comparison)):
            if renderable is not None:
                print_renderable(renderable)
        print(lines(verdict_wording.summary(comparison, overview.leading(comparison))))
    places = {"Report": page, "MLflow": logged and logged.describe()}
    print(lines("\n".join([*reasons, *(f"{name}: {place}" for name, place in places.items() if place)])))
    beside: dict[str, object] = {"report": page, "mlflow": logged and asdict(logged), "failures": failures}
    if conditions:
        beside["gate"] = {"result": result.text, "reasons": reasons}
    record = {**msgspec.to_builtins(comparison), **{name: value for name, value in beside.items() if value}}
    exit_code = int(result) if conditions else code(errors[0]) if errors else 0
    return Conclusion(record, [*verdict_wording.verdict_lines(comparison), *reasons], list(map(str, errors)), exit_code)
