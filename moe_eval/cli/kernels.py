"""`moe-eval kernels`: where the time of a trace goes, and what changed between two."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moe_eval.checkpoint.precision import PRECISIONS, WEIGHT_ONLY
from moe_eval.cli.options.reading import KernelsOptions
from moe_eval.errors import EngineError, UsageError
from moe_eval.records import disk

_LABELS = (*PRECISIONS, *WEIGHT_ONLY.values())


def run(options: KernelsOptions) -> None:
    """Run the subcommand.

    Raises:
        UsageError: options that do not go together, or a file that is no trace.
        EngineError: a trace did not run the precision that it is said to be.
    """
    if options.action == "classify":
        if options.input or options.output or options.precisions or options.tpot_ms:
            raise UsageError("classify reads names from standard input and takes no options. Leave them out.")
        _classify()
        return
    if not options.input or len(options.input) > 2:
        raise UsageError("There are not one or two traces to read. Give --input one trace, or two to compare them.")
    labels = _labels(options)
    if options.tpot_ms and (len(options.input) != 2 or not all(0 < time < math.inf for time in options.tpot_ms)):
        raise UsageError("--tpot_ms is for two traces. Give the times of both, in ms and above 0.")
    if options.output:
        _check_output(options.output, options.input)
    content, text = _analyse(options, labels)
    if options.output:
        disk.write_json(options.output, content)
    print(text)
    contradictions = [trace["contradiction"] for trace in content["traces"] if trace["contradiction"]]
    if contradictions:
        raise EngineError("Not what it is said to be: " + "; ".join(contradictions) + ".")


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


def _analyse(args: KernelsOptions, labels: list[str | None]) -> tuple[dict[str, Any], str]:
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
