"""What `moe-eval kernels` can be asked."""

from __future__ import annotations

from pathlib import Path

from moe_eval.cli.options.option import option
from moe_eval.cli.options.output import INPUT, OUTPUT, OutputOptions
from moe_eval.frozen import frozen


@frozen(kw_only=True)
class KernelsOptions(OutputOptions):
    """What `moe-eval kernels` can be asked."""

    traces: tuple[Path, ...] = option(
        (),
        "one trace, or two to compare. The word classify instead of a trace reads kernel names",
        INPUT,
        metavar="TRACE",
        is_positional=True,
        word_count="*",
    )
    input: tuple[Path, ...] = option((), "the traces by an option instead", INPUT, metavar="TRACE", word_count="+")
    ranks: bool = option(False, "the traces are ranks of one run, and are read as one trace", INPUT)
    precisions: tuple[str, ...] = option(
        (),
        "the precisions that the traces are said to be of, checked against the kernels that ran",
        INPUT,
        metavar="NAME,...",
    )
    tpot_ms: tuple[float, ...] = option(
        (),
        "ms per output token of both, measured without the profiler, to set beside what the kernels predict",
        INPUT,
        metavar="MS",
        word_count=2,
    )
    full: bool = option(False, "show every kernel, layer and rank as well", OUTPUT)
    output: Path | None = option(None, "write everything as JSON as well", OUTPUT, metavar="FILE")
