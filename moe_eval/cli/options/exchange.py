"""What the commands can be asked that pass runs on, or take them from other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from moe_eval.cli.options.option import option
from moe_eval.cli.options.output import INPUT, OUTPUT, RECORDS, OutputOptions
from moe_eval.frozen import frozen


@frozen(kw_only=True)
class ExportOptions(OutputOptions):
    """What `moe-eval export` can be asked."""

    source: str = option("", "a run's folder, or the id of its MLflow run", INPUT, metavar="RUN", is_positional=True)
    target: str = option("", "the file to write: .zip, .csv or .parquet", OUTPUT, metavar="FILE", is_positional=True)
    to: Literal["zip", "csv", "parquet"] | None = option(None, "the format, where FILE does not end with it", OUTPUT)


@frozen(kw_only=True)
class ImportOptions(OutputOptions):
    """What `moe-eval import` can be asked."""

    files: tuple[Path, ...] = option(
        (),
        "JSON that the tool wrote. More files are more loads or shapes",
        INPUT,
        metavar="FILE",
        is_positional=True,
        word_count="+",
    )
    arm: str | None = option(None, "the name of the arm", INPUT, metavar="NAME")
    precision: str | None = option(
        None, "what its experts ran in, where the file does not state it", INPUT, metavar="NAME"
    )
    batch_size: int | None = option(
        None, "sequences at once (of a server: the concurrency), where the file does not state it", INPUT, minimum=1
    )
    input_len: int | None = option(None, "tokens of every prompt, where the file does not state it", INPUT, minimum=1)
    output_len: int | None = option(
        None, "tokens that every sequence makes, where the file does not state it", INPUT, minimum=1
    )
    output_dir: Path = option(Path("benchmark_results"), RECORDS, OUTPUT)


@frozen(kw_only=True)
class LogOptions(OutputOptions):
    """What `moe-eval log` can be asked."""

    folders: tuple[Path, ...] = option(
        (Path("."),),
        "the folder of a run: of moe-eval run, perf or ppl, or of lm_eval (it holds record.json)",
        INPUT,
        metavar="RUN_DIR",
        is_positional=True,
        word_count="*",
    )
