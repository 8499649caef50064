"""`moe-eval kernels`: where the time of a trace goes, and the difference of two."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from moe_eval.checkpoint.precision import LABELS
from moe_eval.cli.options.kernels import KernelsOptions
from moe_eval.cli.output import Conclusion
from moe_eval.cli.paths import meant
from moe_eval.errors import EngineError, UsageError
from moe_eval.outside.words import lines
from moe_eval.records.kernels import KernelsRecord

_CLASSIFY, _MOST_TRACES = Path("classify"), 2
_NAMED = 3  # kernels of a sentence

if TYPE_CHECKING:
    from moe_eval.traces.kernel_table import Trace


def run(options: KernelsOptions) -> Conclusion:
    """Run the subcommand.

    Raises:
        UsageError: options that do not go together, or a file that is no trace.
        EngineError: a trace did not run the precision of its label. Nothing is printed then.
    """
    if _CLASSIFY in options.traces:
        if replace(options, json=False, quiet=False, verbose=False) != KernelsOptions(traces=(_CLASSIFY,)):
            raise UsageError("classify takes neither traces nor options. Give it kernel names on standard input.")
        return _classify()
    if options.traces and options.input:
        raise UsageError("Traces stand by themselves and after --input. Write all of them in one place.")
    paths = options.traces or options.input
    if not paths or (len(paths) > _MOST_TRACES and not options.ranks):
        raise UsageError(
            "There are not one or two traces to read. Name one trace, two to compare, or with --ranks those of one run."
        )
    labels = _labels(options.precisions, 1 if options.ranks else len(paths))
    if options.tpot_ms and (len(labels) != _MOST_TRACES or not all(0 < time < math.inf for time in options.tpot_ms)):
        raise UsageError("--tpot_ms is for two traces. Give the times of both, in ms and above 0.")
    for path in paths:
        if hint := meant(path):
            raise UsageError(f"There is no file {path}.{hint}")
    if options.output:
        _check_output(options.output, paths)
    from moe_eval.evaluators import kernels_record
    from moe_eval.traces import ranks
    from moe_eval.traces.readers import files

    names = [path.name for path in paths]
    traces: Iterable[Trace] = (files.read(path) for path in paths)  # not all in memory at once
    if options.ranks:
        traces, names = [ranks.together(list(traces), names)], [", ".join(names)]
    records = [
        kernels_record.make(name, trace, label) for name, trace, label in zip(names, traces, labels, strict=True)
    ]
    return _show(records, options)


def _show(records: Sequence[KernelsRecord], options: KernelsOptions) -> Conclusion:
    """Write and print one trace, or two with their difference, the first being the reference."""
    from moe_eval.evaluators.kernels_record import shortened
    from moe_eval.report import kernels_table, kernels_words
    from moe_eval.report.console import print_renderable, say

    names, changes = _names(records), {}
    if len(records) > 1:
        from moe_eval.comparison import kernels

        measured = {"decode": options.tpot_ms[0] / options.tpot_ms[1]} if options.tpot_ms else {}
        changes = kernels.changes(records[0], records[1], names, measured)
    short = tuple(map(shortened, records))
    report = kernels.KernelsReport(short, changes) if len(short) > 1 else short[0]
    if options.output:
        from moe_eval.records import disk

        disk.write_record(options.output, report)
    _refuse_contradictions(records)
    if len(records) == 1:
        print_renderable(kernels_table.trace(records[0], full=options.full))
        return Conclusion(_fields(report, options), kernels_words.conclusion(records[0]))
    print_renderable(kernels_table.comparison(records, changes, names, full=options.full))
    if options.tpot_ms and "decode" not in changes:
        say("--tpot_ms is not used, as decode was not found in both traces.")
    lines = [changes[phase].text for phase in kernels_words.main_phases(changes)]
    return Conclusion(_fields(report, options), lines or [kernels_table.NO_CHANGES])


def _fields(report: object, options: KernelsOptions) -> Mapping[str, object]:
    """What --json prints. Empty without it, which needs no library for JSON."""
    if not options.json:
        return {}
    import msgspec

    fields: Mapping[str, object] = msgspec.to_builtins(report)
    return fields


def _names(records: Sequence[KernelsRecord]) -> tuple[str, str]:
    """Of two traces: their labels, else the precisions that ran, else their files."""
    choices = zip(*((record.precision, record.precision_seen, record.trace) for record in records), strict=True)
    pairs = [(f"{choice[0]}", f"{choice[-1]}") for choice in choices if None not in choice]
    before, after = next((pair for pair in pairs if pair[0] != pair[1]), pairs[0])
    return (before, after) if before != after else (f"{before} (1)", f"{after} (2)")


def _refuse_contradictions(records: Sequence[KernelsRecord]) -> None:
    from moe_eval.report.text import plain

    sentences = []
    for record in filter(lambda record: record.contradiction, records):
        kernels = {
            kernel.name: None
            for phase in record.phases.values()
            for kernel in phase.functions
            if kernel.category == "expert_gemm"
        }
        names = ", ".join(plain(name) for name in list(kernels)[:_NAMED])
        sentences.append(f"{record.trace}: {record.contradiction}. Its expert GEMMs are {names}")
    if sentences:
        raise EngineError(
            f"A trace does not run the precision of its label. {'. '.join(sentences)}. Name the precision that ran in "
            "--precisions, or record the trace again."
        )


def _check_output(output: Path, inputs: Sequence[Path]) -> None:
    """A file is written beside `output` and moved there: it must be none that is worth more than this command's."""
    if not output.absolute().parent.is_dir():
        raise UsageError(f"The folder of --output {output} does not exist. Make it, or give another one.")
    if output.exists() and not output.is_file():
        raise UsageError(f"--output {output} is no regular file. Give the name of one.")
    if output.exists() and any(trace.exists() and output.samefile(trace) for trace in inputs):
        raise UsageError(f"--output {output} is a trace that is read, which is not changed. Give another name.")


def _labels(names: Sequence[str], traces: int) -> Sequence[str | None]:
    if names and (len(names) != traces or not set(names) <= set(LABELS)):
        raise UsageError(
            f"--precisions {','.join(names)} does not name every trace. Give one of {', '.join(LABELS)} for each, in "
            "their order."
        )
    return names or [None] * traces


def _classify() -> Conclusion:
    from moe_eval.traces.taxonomy import classify

    if sys.stdin is None or sys.stdout is None:
        raise UsageError(
            "Standard input or output is closed. Open both: classify reads from one and writes to the other."
        )
    rows, labels = [], []
    for name in filter(None, (line.decode("utf-8", "replace").rstrip("\r\n") for line in sys.stdin.buffer)):
        label = classify(name)
        labels.append((name, label))
        rows.append("\t".join((label.category, ",".join(label.fused_with), label.rule, name)))
        # as UTF-8 whatever the terminal's encoding: a name that was read has to be one that can be written
        sys.stdout.buffer.write(lines(rows[-1]).encode() + b"\n")
    sys.stdout.buffer.flush()
    return Conclusion({"kernels": [{"name": name, **asdict(label)} for name, label in labels]}, rows)
