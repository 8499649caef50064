"""`moe-eval compare`: recorded arms side by side, with a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from moe_eval.cli.conclude import concluded
from moe_eval.cli.gathered import gathered
from moe_eval.cli.options.compare import CompareOptions, rules_of
from moe_eval.cli.output import Conclusion
from moe_eval.cli.paths import make_folder
from moe_eval.comparison import gate_text
from moe_eval.errors import UsageError
from moe_eval.records import disk
from moe_eval.records.comparison import COMPARISON_FILE
from moe_eval.records.run import RUN_FILE
from moe_eval.records.verdicts import Verdict
from moe_eval.report import write

_PAGE, _TEXT = "report.html", "report.md"


def run(options: CompareOptions) -> Conclusion:
    """Run the subcommand. Where no pair can be compared the exit code is 2.

    Raises:
        UsageError: sources that cannot be read or compared, or an output folder that is a run's own.
    """
    conditions = gate_text.parse(options.gate) if options.gate is not None else ()
    folder = options.output_dir
    _spare_run(folder, options.sources)
    with gathered(options.sources) as records:
        if len(records.arms) < 2:
            raise UsageError(f"There is one arm alone ({records.arms[0].name}). Give sources of two or more.")
        gate_text.check_arms(conditions, [arm.name for arm in records.arms])
        make_folder(folder)
        comparison = records.compare(options.across, rules_of(options))
        disk.write_record(folder / COMPARISON_FILE, comparison)
        write.write(comparison, folder, _PAGE, _TEXT, records.first_run)
    conclusion = concluded(comparison, conditions, page=folder / _PAGE)
    if not conditions and all(pair.verdict is Verdict.NOT_COMPARABLE for pair in comparison.pairs):
        return replace(conclusion, code=2)
    return conclusion


def _spare_run(output: Path, sources: Sequence[str]) -> None:
    """Keep a run's own comparison and report: they are made again from all of it or not at all."""
    if (output / RUN_FILE).is_file() and [Path(source).resolve() for source in sources] != [output.resolve()]:
        raise UsageError(
            f"--output_dir {output} is the folder of a run, whose own comparison is there. Give another --output_dir."
        )
