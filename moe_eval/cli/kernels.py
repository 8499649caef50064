"""`moe-eval kernels`: where the time of a trace goes, and what changed between two."""

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
        description="Breaks a trace down by phase and function: an Nsight Systems export (.sqlite), a report "
        "(.nsys-rep, where nsys is installed), a CSV of `nsys stats`, or a Chrome trace of torch's profiler (.json, "
        ".json.gz). Two traces are compared as well, the first one being the reference. `classify` reads kernel names "
        "from standard input, one a line, and writes category, fused_with, rule and name, separated by tabs.",
    )
    parser.add_argument("action", nargs="?", choices=["classify"], help="instead of reading a trace")
    parser.add_argument("--input", type=Path, nargs="+", metavar="TRACE", help="one trace, or two to compare")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write everything as JSON as well")
    parser.add_argument(
        "--precisions", metavar="NAME,...", help="what the traces are said to be: checked against the kernels that ran"
    )
    parser.add_argument(
        "--tpot_ms",
        type=float,
        nargs=2,
        metavar="MS",
        help="ms per output token of both, measured without the profiler: set beside what the kernels predict",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Run the subcommand.

    Raises:
        UsageError: options that do not go together, or a file that is no trace.
        EngineError: a trace did not run the precision that it is said to be.
    """
    if args.action == "classify":
        if args.input or args.output or args.precisions or args.tpot_ms:
            raise UsageError("classify reads names from standard input and takes no options.")
        _classify()
        return
    if not args.input or len(args.input) > 2:
        raise UsageError("Give --input one trace, or two to compare them.")
    labels = _labels(args)
    if args.tpot_ms and (len(args.input) != 2 or not all(0 < each < math.inf for each in args.tpot_ms)):
        raise UsageError("--tpot_ms takes the times of two traces, in ms and above 0.")
    if args.output:
        _check_output(args.output, args.input)
    content, text = _analyse(args, labels)
    if args.output:
        disk.write_json(args.output, content)
    print(text)
    wrong = [each["contradiction"] for each in content["traces"] if each["contradiction"]]
    if wrong:
        raise EngineError("Not what it is said to be: " + "; ".join(wrong) + ".")


def _check_output(output: Path, inputs: Sequence[Path]) -> None:
    """A file is written beside `output` and moved there: it must be none that is worth more than this command's."""
    if not output.absolute().parent.is_dir():
        raise UsageError(f"The folder of --output {output} does not exist; make it, or give another one.")
    if output.exists() and not output.is_file():
        raise UsageError(f"--output {output} is no regular file; give the name of one.")
    if output.exists() and any(each.exists() and output.samefile(each) for each in inputs):
        raise UsageError(f"--output {output} is a trace that is read, which is not changed; give another name.")


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


def _analyse(args: argparse.Namespace, labels: list[str | None]) -> tuple[dict[str, Any], str]:
    from moe_eval.comparison import kernel_difference
    from moe_eval.evaluators import kernels_record
    from moe_eval.report import kernels_table
    from moe_eval.traces import breakdown
    from moe_eval.traces.readers import files

    found, traces = [], []
    for path, label in zip(args.input, labels, strict=True):
        trace = files.read(path)
        found.append(breakdown.make(trace))
        traces.append(kernels_record.record(path.name, trace, found[-1], label))
    parts = [kernels_table.render(each) for each in traces]
    content: dict[str, Any] = {"traces": traces}
    if len(found) == 2:
        differences = kernel_difference.make(found[0], found[1])
        measured = args.tpot_ms[0] / args.tpot_ms[1] if args.tpot_ms else None
        ratios = [measured if each.name == "decode" else None for each in differences]
        names = [label or path.name for label, path in zip(labels, args.input, strict=True)]
        if names[0] == names[1]:
            names = [f"{name} ({at})" for at, name in enumerate(names, 1)]
        texts = [
            kernel_difference.explain(each, (names[0], names[1]), ratio)
            for each, ratio in zip(differences, ratios, strict=True)
        ]
        content["difference"] = {
            each.name: {**kernels_record.difference(each, ratio), "text": text}
            for each, ratio, text in zip(differences, ratios, texts, strict=True)
        }
        if differences:
            parts.append(kernels_table.difference(content["difference"], names, texts))
        if not differences:
            parts.append("The traces have no phase in common, so there is no difference to show.")
        if measured is not None and "decode" not in content["difference"]:
            parts.append("--tpot_ms is not used: decode was not found in both traces.")
    return content, "\n\n".join(parts)


def _classify() -> None:
    from moe_eval.traces.taxonomy import classify

    if sys.stdin is None or sys.stdout is None:
        raise UsageError("Standard input or output is closed; classify reads names from one and writes to the other.")
    for line in sys.stdin.buffer:
        name = line.decode("utf-8", "replace").rstrip("\r\n")
        if name:
            label = classify(name)
            row = "\t".join((label.category, ",".join(label.fused_with), label.rule, name))
            # as UTF-8 whatever the terminal's encoding: a name that was read has to be one that can be written
            sys.stdout.buffer.write(row.encode("utf-8", "replace") + b"\n")
    sys.stdout.buffer.flush()
