"""`moe-eval kernels`: where the time of a trace goes, and the difference of two."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moe_eval.checkpoint.precision import PRECISIONS, WEIGHT_ONLY
from moe_eval.cli.options.classes import KernelsOptions
from moe_eval.errors import EngineError, UsageError
from moe_eval.records import disk

if TYPE_CHECKING:
    from rich.console import RenderableType

    from moe_eval.comparison.kernels import KernelsReport

_LABELS = (*PRECISIONS, *WEIGHT_ONLY.values())


def run(options: KernelsOptions) -> None:
    """Run the subcommand.

    Raises:
        UsageError: options that do not go together, or a file that is no trace.
        EngineError: a trace did not run the precision of its label.
    """
    if options.action == "classify":
        if options.input or options.output or options.precisions or options.tpot_ms:
            raise UsageError("classify takes no options. Give it kernel names on standard input.")
        _classify()
        return
    if not options.input or len(options.input) > 2:
        raise UsageError("There are not one or two traces to read. Give --input one trace, or two to compare them.")
    labels = _labels(options)
    if options.tpot_ms and (len(options.input) != 2 or not all(0 < time < math.inf for time in options.tpot_ms)):
        raise UsageError("--tpot_ms is for two traces. Give the times of both, in ms and above 0.")
    if options.output:
        _check_output(options.output, options.input)
    from moe_eval.report.console import print_renderable

    report, parts = _report(options.input, labels, options.tpot_ms)
    if options.output:
        disk.write_record(options.output, report)
    for part in parts:
        print_renderable(part)
    contradictions = [record.contradiction for record in report.traces if record.contradiction]
    if contradictions:
        raise EngineError(f"A trace does not run the precision of its label: {'. '.join(contradictions)}.")


def _check_output(output: Path, inputs: Sequence[Path]) -> None:
    """A file is written beside `output` and moved there: it must be none that is worth more than this command's."""
    if not output.absolute().parent.is_dir():
        raise UsageError(f"The folder of --output {output} does not exist. Make it, or give another one.")
    if output.exists() and not output.is_file():
        raise UsageError(f"--output {output} is no regular file. Give the name of one.")
    if output.exists() and any(trace.exists() and output.samefile(trace) for trace in inputs):
        raise UsageError(f"--output {output} is a trace that is read, which is not changed. Give another name.")


def _labels(options: KernelsOptions) -> list[str | None]:
    if not options.precisions:
        return [None] * len(options.input)
    unknown = [name for name in options.precisions if name not in _LABELS]
    if unknown or len(options.precisions) != len(options.input):
        raise UsageError(
            f"--precisions {','.join(options.precisions)} does not name every trace. Give one of {', '.join(_LABELS)} "
            "for each, in their order."
        )
    return list(options.precisions)


def _report(
    paths: Sequence[Path], labels: Sequence[str | None], tpot_ms: Sequence[float] | None
) -> tuple[KernelsReport, list[RenderableType]]:
    """Break traces down, and compare them where there are two, the first being the reference.

    Returns:
        The report, and its paragraphs.
    """
    from moe_eval.comparison import kernels
    from moe_eval.evaluators import kernels_record
    from moe_eval.report import kernels_table
    from moe_eval.traces.readers import files

    records = [
        kernels_record.make(path.name, files.read(path), label) for path, label in zip(paths, labels, strict=True)
    ]
    short = tuple(map(kernels_record.shortened, records))
    parts = [kernels_table.trace(record) for record in short]
    if len(records) < 2:
        return kernels.KernelsReport(short), parts
    before, after = (label or path.name for path, label in zip(paths, labels, strict=True))
    names = (before, after) if before != after else (f"{before} (1)", f"{after} (2)")
    measured = {"decode": tpot_ms[0] / tpot_ms[1]} if tpot_ms else {}
    changes = kernels.changes(records[0], records[1], names, measured)
    if changes:
        parts.append(kernels_table.difference(changes, names))
    else:
        parts.append("The traces have no phase in common, so there is no difference to show.")
    if tpot_ms and "decode" not in changes:
        parts.append("--tpot_ms is not used, as decode was not found in both traces.")
    return kernels.KernelsReport(short, changes), parts


def _classify() -> None:
    from moe_eval.traces.taxonomy import classify

    if sys.stdin is None or sys.stdout is None:
        raise UsageError(
            "Standard input or output is closed. Open both: classify reads from one and writes to the other."
        )
    for line in sys.stdin.buffer:
        name = line.decode("utf-8", "replace").rstrip("\r\n")
        if name:
            label = classify(name)
            row = "\t".join((label.category, ",".join(label.fused_with), label.rule, name))
            # as UTF-8 whatever the terminal's encoding: a name that was read has to be one that can be written
            sys.stdout.buffer.write(row.encode("utf-8", "replace") + b"\n")
    sys.stdout.buffer.flush()
