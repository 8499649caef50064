"""Reading large traces: `moe-eval kernels` beside pandas, polars and DuckDB, processor time and memory in one run.

    python benchmarks/traces.py [--kernels 1000000] [--megabytes 300] [--repeats 5]

Made-up files: an Nsight Systems database replayed from CUDA graphs, one launched kernel by kernel (a launch and ranges
for each), and a Chrome trace of torch's profiler. Each command runs in a process of its own, in turns; figures are of
whole processes. The peers join kernels, names and launches and sum by name, and do no more; `moe-eval kernels` also
attributes ranges, finds steps and categories, and prints everything. A peer that is not installed is left out (polars
reads databases with connectorx; DuckDB is given polars' tables).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OURS = "import sys; from moe_eval.cli import main; sys.exit(main(['kernels', '--input', sys.argv[1]]))"
_QUERIES = """
kernels = read('SELECT start, "end", deviceId, streamId, correlationId, globalPid, demangledName, graphNodeId'
               ' FROM CUPTI_ACTIVITY_KIND_KERNEL')
calls = read("SELECT start AS launched, globalTid, correlationId FROM CUPTI_ACTIVITY_KIND_RUNTIME")
names = read("SELECT id, value FROM StringIds")
"""
_POLARS = f"""
import sys
import polars as pl
def read(query): return pl.read_database_uri(query, "sqlite://" + sys.argv[1])
{_QUERIES}
"""
NSYS = {
    "pandas": f"""
import sqlite3, sys
import pandas as pd
db = sqlite3.connect(sys.argv[1])
def read(query): return pd.read_sql_query(query, db)
{_QUERIES}
calls["globalPid"] = calls.globalTid // 0x1000000 * 0x1000000
kernels = kernels.merge(calls.drop_duplicates(["globalPid", "correlationId"]), "left", ["globalPid", "correlationId"])
kernels = kernels.merge(names, "left", left_on="demangledName", right_on="id")
kernels["duration"] = kernels.end - kernels.start
print(kernels.groupby("value").duration.agg(["sum", "count"]).sort_values("sum"))
""",
    "polars": f"""{_POLARS}
calls = calls.with_columns(globalPid=pl.col("globalTid") // 0x1000000 * 0x1000000)
calls = calls.unique(["globalPid", "correlationId"], keep="first")
kernels = kernels.join(calls, on=["globalPid", "correlationId"], how="left")
kernels = kernels.join(names, left_on="demangledName", right_on="id", how="left")
kernels = kernels.with_columns(duration=pl.col("end") - pl.col("start"))
print(kernels.group_by("value").agg(pl.col("duration").sum(), pl.len()).sort("duration"))
""",
    "duckdb": f"""{_POLARS}
import duckdb
print(duckdb.sql('''
    SELECT value, sum("end" - start) AS total, count(*) FROM kernels
    LEFT JOIN (SELECT DISTINCT ON (globalPid, correlationId) *, globalTid // 16777216 * 16777216 AS globalPid
    FROM calls) USING (globalPid, correlationId)
    LEFT JOIN names ON demangledName = id GROUP BY value ORDER BY total'''))
""",
}
CHROME = {
    "pandas": """
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
""",
    "duckdb": """
import sys
import duckdb
print(duckdb.sql(f'''
    WITH events AS (SELECT unnest(traceEvents) AS event FROM read_json('{sys.argv[1]}', maximum_object_size=2147483648,
        columns={{'traceEvents': 'STRUCT(name VARCHAR, cat VARCHAR, ts DOUBLE, dur DOUBLE,
        args STRUCT(correlation BIGINT))[]'}})),
    kernels AS (SELECT event.name, event.dur, event.args.correlation FROM events
        WHERE event.cat IN ('kernel', 'gpu_memcpy', 'gpu_memset')),
    calls AS (SELECT event.ts, event.args.correlation FROM events WHERE event.cat IN ('cuda_runtime', 'cuda_driver'))
    SELECT name, sum(dur) AS total, count(*) FROM kernels LEFT JOIN calls USING (correlation)
    GROUP BY name ORDER BY total'''))
""",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", type=int, default=1_000_000)
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from tests.doubles import chrome_trace, nsys_database

    per_step = 48 * len(nsys_database.LAYER) + 1
    with tempfile.TemporaryDirectory() as folder:
        for title, options in (("graphs", {"ranks": 2}), ("launched one by one", {"ranks": 1, "graph": False})):
            database = Path(folder) / f"{title}.sqlite"
            steps = max(1, args.kernels // (per_step * int(options["ranks"])))
            made = nsys_database.write(database, layers=48, steps=steps, **options)
            report(f"Nsight Systems, {title}, {made:,} kernels", NSYS, database, args.repeats)
            database.unlink()
        trace = Path(folder) / "trace.json"
        chrome_trace.write(trace, layers=48, size=args.megabytes * 10**6)
        report("Chrome trace", CHROME, trace, args.repeats)


def report(title: str, peers: Mapping[str, str], file: Path, repeats: int) -> None:
    programs = {"moe-eval kernels": OURS} | {name: code for name, code in peers.items() if find_spec(name)}
    runs: dict[str, list[tuple[float, float, float]]] = {name: [] for name in programs}
    for _ in range(repeats):
        for name, code in programs.items():
            runs[name].append(run(["-c", code, str(file)]))
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in runs.items()}
    ours = medians["moe-eval kernels"][0]
    print(f"{title}, {file.stat().st_size / 1e6:.0f} MB, medians of {repeats}")
    for name, (processor, seconds, memory) in medians.items():
        print(
            f"  {name:17} {processor:6.2f} s of processor time, {seconds:6.2f} s, {memory:6.0f} MB, "
            f"moe-eval takes {ours / processor:.2f} of it"
        )


def run(arguments: Sequence[str]) -> tuple[float, float, float]:
    """Processor seconds, seconds and peak megabytes of a Python process."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"{arguments[1][:60]} ended with {status}")
    return usage.ru_utime + usage.ru_stime, seconds, usage.ru_maxrss / 1000


if __name__ == "__main__":
    main()
