"""The report of the H100 run in docs/results, and the picture of the README.

    python benchmarks/h100_report.py                    page, Markdown and picture from docs/results/h100-loads.json
    python benchmarks/h100_report.py SPEED TRACES       the same, after making the records anew

SPEED is the output folder of `moe-eval perf`, TRACES that of a later `moe-eval run` with traces of the same arms. The
checkpoint was a folder with Qwen3-30B-A3B's config.json and random weights, so the header gets that name.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from moe_eval.comparison import pairs
from moe_eval.records import by_arm, disk, run_files
from moe_eval.records.comparison import COMPARISON_SCHEMA, ComparisonRecord
from moe_eval.records.run import RUN_SCHEMA, RunRecord
from moe_eval.report import write

RESULTS = Path(__file__).parents[1] / "docs" / "results"
COMPARISON, RUN = RESULTS / "h100-loads.json", RESULTS / "h100-loads-run.json"
MODEL = "Qwen3-30B-A3B"


def make_records(speed: Path, traces: Path) -> None:
    """The comparison of the timed arms with the kernels of the traced ones, and the timed run without UUIDs."""
    (run,) = run_files.read_run(speed)
    kernels = {arm.name: arm.kernels for arm in by_arm.read(traces)}
    arms = [replace(arm, kernels=kernels[arm.name]) for arm in by_arm.read(speed)]
    comparison = pairs.compare(arms, runs=[run])
    disk.write_record(COMPARISON, replace(comparison, header=replace(comparison.header, models=(MODEL,))))
    gpus = tuple(replace(gpu, uuid=None) for gpu in run.machine.gpus)
    disk.write_record(RUN, replace(run, machine=replace(run.machine, gpus=gpus)))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        make_records(Path(sys.argv[1]), Path(sys.argv[2]))
    maker = "benchmarks/h100_report.py"
    compared = disk.read_record(COMPARISON, ComparisonRecord, schemas=(COMPARISON_SCHEMA,), maker=maker)
    timed = disk.read_record(RUN, RunRecord, schemas=(RUN_SCHEMA,), maker=maker)
    write.write(compared, RESULTS, "h100-loads.html", "h100-loads.md", timed)
