"""What arms and shapes cost behind a run: comparison, report and MLflow logging of 2, 10 and 40 arms at 1 and 8 shapes.

    PYTHONPATH=. python benchmarks/growth.py [--arms 2 10 40] [--shapes 1 8]

Records are made up: four loads of every shape, quality of fifty documents, and a trace of every shape for each arm.
Figures are seconds of processor time, in a process that has imported everything. Every store of MLflow is a new one.
`--profile` prints where the largest goes.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from moe_eval import tracking
from moe_eval.cli.gathered import gathered
from moe_eval.records import disk
from moe_eval.records.by_arm import ArmRecords
from moe_eval.records.comparison import COMPARISON_FILE
from moe_eval.report import write
from tests.doubles import recorded_arms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", type=int, nargs="+", default=[2, 10, 40])
    parser.add_argument("--shapes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    measured(2, 1)  # imports and caches
    print("| arms | shapes | comparison | report | MLflow | together |\n|---|---|---|---|---|---|")
    for shapes in args.shapes:
        for arms in args.arms:
            is_largest = (arms, shapes) == (args.arms[-1], args.shapes[-1])
            profile = cProfile.Profile(time.process_time) if args.profile and is_largest else None
            seconds = measured(arms, shapes, profile)
            cells = " | ".join(f"{part:.2f} s" for part in (*seconds, sum(seconds)))
            print(f"| {arms} | {shapes} | {cells} |", flush=True)
            if profile:
                pstats.Stats(profile).sort_stats("cumulative").print_stats(60)


def measured(arms: int, shapes: int, profile: cProfile.Profile | None = None) -> tuple[float, float, float]:
    """Seconds of processor time of comparison, report and logging."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        folder.mkdir()
        make(folder, arms, shapes)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{scratch}/mlflow.db"
        state: dict[str, Any] = {}

        def compare() -> None:
            with gathered([str(folder)]) as records:
                state["record"], state["run"] = records.compare(), records.first_run
                disk.write_record(folder / COMPARISON_FILE, state["record"])

        def report() -> None:
            write.write(state["record"], folder, "report.html", "report.md", state["run"])

        if profile:
            profile.enable()
        seconds = tuple(map(_processor, (compare, report, lambda: tracking.log_run(folder))))
        if profile:
            profile.disable()
    return seconds[0], seconds[1], seconds[2]


def make(folder: Path, arms: int, shapes: int) -> None:
    """The folder of a run."""
    names = [f"arm{index:02}" for index in range(arms)]
    sizes = [2**index for index in range(shapes)]
    records = []
    for index, name in enumerate(names):
        faster = 1 - index / 200
        loads = {size: [[faster * (100 + size + load), faster * (101 + size)] for load in range(4)] for size in sizes}
        scores = recorded_arms.scores(index / 1000, 50)
        scores.save(folder / f"ppl_{name}_sm90.npz")
        traces = [recorded_arms.traced(name, recorded_arms.generation(graph=True, fp8=bool(index)).trace(), None, None)]
        kernels = {
            shape.name: replace(traces[0], shape=shape.name) for shape in recorded_arms.latency(name, loads).shapes
        }
        records.append(
            ArmRecords(
                name,
                name,
                recorded_arms.latency(name, loads),
                quality=recorded_arms.quality(name, scores),
                kernels=kernels,
                folder=folder,
            )
        )
    recorded_arms.write(folder, records, record=recorded_arms.run(names))


def _processor(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


if __name__ == "__main__":
    main()
