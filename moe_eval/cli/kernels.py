"""`moe-eval kernels`: where the time of a trace goes, and the difference of two."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moe_eval.checkpoint.precision import PRECISIONS, WEIGHT_ONLY
from moe_eval.errors import EngineError, UsageError
from moe_eval.records import disk

_LABELS = (*PRECISIONS, *WEIGHT_ONLY.values())


def add(commands: Any) -> None:
    """Add the subcommand to the parser."""
    parser = commands.add_parser(
        "kernels",
        help="where the time of a profiler's trace goes",
        description="Breaks a trace down by phase and category: an Nsight Systems export (.sqlite), a report "
        "(.nsys-rep, where nsys is installed), a CSV of `nsys stats`, or a Chrome trace of torch's profiler (.json, "
        ".json.gz). Two traces are compared as well, with the first as the reference. `classify` reads kernel names "
        "from standard input, one a line, and writes category, fused_with, rule and name, separated by tabs.",
    )
    parser.add_argument("action", nargs="?", choices=["classify"], help="instead of reading a trace")
    parser.add_argument("--input", type=Path, nargs="+", metavar="TRACE", help="one trace, or two to compare")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write everything as JSON as well")
    parser.add_argument(
        "--precisions",
        metavar="NAME,...",
        help="the precision of each trace, which is checked against the kernels that ran",
    )
    parser.add_argument(
        "--tpot_ms",
        type=float,
        nargs=2,
        metavar="MS",
        help="ms per output token of both, measured without the profiler, beside which the kernels' prediction is set",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Run the subcommand.

    Raises:
        UsageError: options that do not go together, or a file that is no trace.
        EngineError: a trace did not run the precision of its label.
    """
    if args.action == "classify":
        if args.input or args.output or args.precisions or args.tpot_ms:
            raise UsageError("classify takes no options. Give it kernel names on standard input.")
        _classify()
        return
    if not args.input or len(args.input) > 2:
        raise UsageError("Give --input one trace, or two to compare them.")
    labels = _labels(args)
    if args.tpot_ms and (len(args.input) != 2 or not all(0 < ms < math.inf for ms in args.tpot_ms)):
        raise UsageError("--tpot_ms needs the times of two traces. Give both in ms and above 0.")
    if args.output:
        _check_output(args.output, args.input)
    from moe_eval.cli import kernels_report
    from moe_eval.report.console import print_renderable

    report, parts = kernels_report.make(args.input, labels, args.tpot_ms)
    if args.output:
        disk.write_record(args.output, report)
    for part in parts:
        print_renderable(part)
    wrong = [record.contradiction for record in report.traces if record.contradiction]
    if wrong:
        raise EngineError(f"A trace does not run the precision of its label: {'. '.join(wrong)}.")


def _check_output(output: Path, inputs: Sequence[Path]) -> None:
    """A file is written beside `output` and moved there: it must be none that is worth more than this command's."""
    if not output.absolute().parent.is_dir():
        raise UsageError(f"The folder of --output {output} does not exist. Make it, or give another one.")
    if output.exists() and not output.is_file():
        raise UsageError(f"--output {output} is no regular file. Give the name of one.")
    if output.exists() and any(path.exists() and output.samefile(path) for path in inputs):
        raise UsageError(f"--output {output} is a trace that is read, which is not changed. Give another name.")


def _labels(args: argparse.Namespace) -> list[str | None]:
    if not args.precisions:
        return [None] * len(args.input)
    labels: list[str | None] = [name.strip() for name in args.precisions.split(",")]
    unknown = [name for name in labels if name not in _LABELS]
    if unknown or len(labels) != len(args.input):
        raise UsageError(
            f"--precisions {args.precisions} has to name one of {', '.join(_LABELS)} for every trace, in their order."
        )
    return labels


def _classify() -> None:
    from moe_eval.traces.taxonomy import classify

    if sys.stdin is None or sys.stdout is None:
        raise UsageError(
            "Standard input or output is closed. Open both: classify reads names and writes their categories."
        )
    for line in sys.stdin.buffer:
        name = line.decode("utf-8", "replace").rstrip("\r\n")
        if name:
            label = classify(name)
            row = "\t".join((label.category, ",".join(label.fused_with), label.rule, name))
            # as UTF-8 whatever the terminal's encoding: a name that was read has to be one that can be written
            sys.stdout.buffer.write(row.encode("utf-8", "replace") + b"\n")
    sys.stdout.buffer.flush()
