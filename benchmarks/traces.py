"""Reading large traces: `moe-eval kernels` beside the plain pandas way, seconds and memory in one run.

    python benchmarks/traces.py [--kernels 1000000] [--megabytes 300] [--repeats 3]

Two made-up files: an Nsight Systems database (layer-wise NVTX, CUDA graph nodes, launches, two processes) and a Chrome
trace of torch's profiler. Each command runs in a process of its own, in turns; seconds and peak memory are those of the
process, less those of `python -c pass`. The pandas way joins kernels, names and launches and sums by name, and does no
more; `moe-eval kernels` also attributes ranges, finds steps and categories, and prints everything.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OURS = "import sys; from moe_eval.cli import main; sys.exit(main(['kernels', '--input', sys.argv[1]]))"
NSYS = """
import sqlite3, sys
import pandas as pd
db = sqlite3.connect(sys.argv[1])
kernels = pd.read_sql_query("SELECT start, end, deviceId, streamId, correlationId, globalPid, demangledName,"
                            " graphNodeId FROM CUPTI_ACTIVITY_KIND_KERNEL", db)
calls = pd.read_sql_query("SELECT start AS launched, globalTid, correlationId FROM CUPTI_ACTIVITY_KIND_RUNTIME", db)
names = pd.read_sql_query("SELECT id, value FROM StringIds", db)
calls["globalPid"] = calls.globalTid // 0x1000000 * 0x1000000
kernels = kernels.merge(calls.drop_duplicates(["globalPid", "correlationId"]), "left", ["globalPid", "correlationId"])
kernels = kernels.merge(names, "left", left_on="demangledName", right_on="id")
kernels["duration"] = kernels.end - kernels.start
print(kernels.groupby("value").duration.agg(["sum", "count"]).sort_values("sum"))
"""
CHROME = """
import json, sys
import pandas as pd
with open(sys.argv[1]) as file:
    events = pd.DataFrame(json.load(file)["traceEvents"])
kernels = events[events["cat"].isin(["kernel", "gpu_memcpy", "gpu_memset"])].copy()
kernels["correlation"] = [args["correlation"] for args in kernels["args"]]
calls = events[events["cat"].isin(["cuda_runtime", "cuda_driver"])].copy()
calls["correlation"] = [args.get("correlation") for args in calls["args"]]
kernels = kernels.merge(calls[["correlation", "ts"]], "left", "correlation")
print(kernels.groupby("name").dur.agg(["sum", "count"]).sort_values("sum"))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", type=int, default=1_000_000)
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from tests.doubles import chrome_trace, nsys_database

    with tempfile.TemporaryDirectory() as folder:
        database, trace = Path(folder) / "trace.sqlite", Path(folder) / "trace.json"
        per_step = 2 * (48 * len(nsys_database.LAYER) + 1)
        made = nsys_database.write(database, layers=48, steps=args.kernels // per_step)
        report(f"Nsight Systems, {made:,} kernels", NSYS, database, args.repeats)
        chrome_trace.write(trace, layers=48, size=args.megabytes * 10**6)
        report("Chrome trace", CHROME, trace, args.repeats)


def report(title: str, pandas: str, file: Path, repeats: int) -> None:
    megabytes = file.stat().st_size / 1e6
    found: dict[str, list[tuple[float, float]]] = {"nothing": [], "moe-eval": [], "pandas": []}
    for _ in range(repeats):
        found["nothing"].append(run(["-c", "pass"]))
        found["moe-eval"].append(run(["-c", OURS, str(file)]))
        found["pandas"].append(run(["-c", pandas, str(file)]))
    nothing, ours, theirs = ([statistics.median(each) for each in zip(*runs, strict=True)] for runs in found.values())
    print(f"{title}, {megabytes:.0f} MB, medians of {repeats}")
    for name, (seconds, memory) in (("moe-eval kernels", ours), ("pandas", theirs)):
        took, held = seconds - nothing[0], memory - nothing[1]
        print(f"  {name:17} {took:6.2f} s  {megabytes / took:6.0f} MB/s  {held:6.0f} MB of memory")
    print(f"  pandas / moe-eval {(theirs[0] - nothing[0]) / (ours[0] - nothing[0]):.2f}")


def run(arguments: Sequence[str]) -> tuple[float, float]:
    """Seconds and peak megabytes of a Python process."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"{arguments[1][:60]} ended with {status}")
    return seconds, usage.ru_maxrss / 1000


if __name__ == "__main__":
    main()
