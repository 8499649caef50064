"""The report of the H100 run in docs/results, and the picture of the README.

    python benchmarks/h100_report.py          page, Markdown and picture from docs/results/h100-run.json
    python benchmarks/h100_report.py RUN      the same, after making the records anew from the output folder of a run

The checkpoint was a folder with Qwen3-30B-A3B's config.json and random weights, so the header gets that name.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from moe_eval.comparison import pairs
from moe_eval.records import anonymous, by_arm, disk, run_files
from moe_eval.records.comparison import COMPARISON_SCHEMA, ComparisonRecord
from moe_eval.records.run import RUN_SCHEMA, RunRecord
from moe_eval.report import write

RESULTS = Path(__file__).parents[1] / "docs" / "results"
COMPARISON, RUN = RESULTS / "h100-run.json", RESULTS / "h100-run-record.json"
MODEL = "Qwen3-30B-A3B"


def make_records(folder: Path) -> None:
    """The comparison of a run's arms, and the record of the run without paths and UUIDs."""
    (run,) = run_files.read_run(folder)
    arms = by_arm.read(folder)
    comparison = pairs.compare(arms, runs=[run])
    disk.write_record(COMPARISON, replace(comparison, header=replace(comparison.header, models=(MODEL,))))
    disk.write_record(RUN, anonymous.anonymous(run, anonymous.here()))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        make_records(Path(sys.argv[1]))
    maker = "benchmarks/h100_report.py"
    compared = disk.read_record(COMPARISON, ComparisonRecord, schemas=(COMPARISON_SCHEMA,), maker=maker)
    timed = disk.read_record(RUN, RunRecord, schemas=(RUN_SCHEMA,), maker=maker)
    write.write(compared, RESULTS, "h100-run.html", "h100-run.md", timed)
