"""The Python interface: measure, compare and read from a program.

    import moe_eval

    results = moe_eval.run(emulate=True, precisions=["bf16", "fp8"], dataset="moe_sample")
    print(results.comparison.pairs[0].sentence)
    results.to_dataframe()

Everything raises moe_eval.errors.UsageError for what the caller can correct, EngineError where an engine broke down and
TrackingError where MLflow did.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moe_eval.errors import EngineError, TrackingError, UsageError, no_such
from moe_eval.frozen import frozen
from moe_eval.records.by_arm import ArmRecords
from moe_eval.records.comparison import ComparisonRecord
from moe_eval.records.verdicts import Rules

if TYPE_CHECKING:
    import pandas


@frozen
class Results:
    """Recorded arms and their comparison.

    Attributes:
        arms: the reference first. Each has `latency`, `quality` and `kernels`, see moe_eval.records.
        comparison: every arm against the first. None where there are no two arms.
        failures: a sentence for every task of `run` that failed.
        folder: where the records are. None where they came from several sources, or from MLflow.
    """

    arms: Sequence[ArmRecords]
    comparison: ComparisonRecord | None = None
    failures: tuple[str, ...] = ()
    folder: Path | None = None

    def to_dataframe(self) -> pandas.DataFrame:
        """One row for every arm, shape and metric, and one for every figure of quality.

        Columns: arm, precision, evaluator (quality, tasks, latency, serving or kernels), shape (such as b8_i512_o256,
        of servers c8_i512_o128, empty for quality and tasks), metric, median, low, high. A metric's name ends with its
        unit (`e2e_ms`, `output_tok_s`, `j_per_tok`), and that of a task is TASK/METRIC,FILTER. Low and high are the
        95 % interval, and NaN where there is none. Kernels are in ms per step, as `decode/expert_gemm_ms`.
        """
        from moe_eval.report.frame import dataframe

        return dataframe(self.arms, self.comparison)


def run(**options: object) -> Results:
    """Measure arms and compare them, as `moe-eval run` does, and print nothing but progress, on standard error.

    Args:
        options: those of `moe-eval run` by their names (docs/reference/options.md). Lists are lists or texts with
            commas. `config` names a YAML file, whose options these overrule. `dry_run`, `gate` and options of what is
            printed have no use here.

    Returns:
        The arms that were measured. Tasks that failed are in `failures`.

    Raises:
        UsageError: an option does not exist or has no such value, or the options ask for what cannot be.
        EngineError: nothing could be measured.
        TrackingError: the run is on disk, and MLflow did not take it.
    """
    from moe_eval.cli.execute import measure
    from moe_eval.cli.options import config
    from moe_eval.cli.options.commands import RUN
    from moe_eval.cli.options.measuring import RunOptions
    from moe_eval.cli.options.option import options_of
    from moe_eval.cli.options.output import OutputOptions

    unused = {"dry_run", "gate", *options_of(OutputOptions)}
    names = [name for name in options_of(RunOptions) if name not in unused]
    for name in options:
        if name not in names:
            raise UsageError(no_such("option", name, names, "docs/reference/options.md lists them."))
    run_options = RUN.filled(config.checked(options, RunOptions))
    outcome = measure(run_options, lambda _: None)
    if outcome.failures and not outcome.arms:
        raise EngineError(f"No task finished. The first reason: {outcome.failures[0]}.")
    if outcome.tracking_failure:
        raise TrackingError(outcome.tracking_failure)
    comparison = outcome.comparison if outcome.arms else None
    return Results(outcome.arms, comparison, tuple(outcome.failures), run_options.output_dir)


def compare(*sources: str | Path, across: Collection[str] = (), rules: Rules | None = None) -> Results:
    """Compare recorded arms with the first of them, as `moe-eval compare` does, and write nothing.

    Args:
        sources: output folders of moe-eval run, perf, ppl and import, files of moe-eval export, ids of MLflow runs, or
            names of MLflow experiments.
        across: what may differ between arms: `gpus`, or nothing.
        rules: of the verdicts: the least gain that counts, and the time that decides. None for the default ones.

    Raises:
        UsageError: a source cannot be read, two of them hold the same measurement, or there is one arm alone.
    """
    results = _results(sources, across, rules)
    if len(results.arms) < 2:
        raise UsageError(f"There is one arm alone ({results.arms[0].name}). Give sources of two or more.")
    return results


def read(folder_or_run_id: str | Path) -> Results:
    """Read recorded arms, of this version or of schema 1, and compare them where there are two or more.

    Args:
        folder_or_run_id: an output folder of moe-eval run, perf or ppl, the id of an MLflow run, or the name of an
            MLflow experiment, of which the newest run is read.

    Raises:
        UsageError: there is no such folder or run, it holds no record, or a record is damaged.
    """
    return _results([folder_or_run_id], ())


def _results(sources: Sequence[str | Path], across: Collection[str], rules: Rules | None = None) -> Results:
    from moe_eval.cli.gathered import gathered

    if not sources:
        raise UsageError("There is no source. Give a folder, an MLflow run id or an experiment.")
    with gathered([str(source) for source in sources]) as records:
        comparison = records.compare(across, rules) if len(records.arms) > 1 else None
    folder = Path(sources[0])
    return Results(records.arms, comparison, (), folder if len(sources) == 1 and folder.is_dir() else None)
