"""What starting costs: commands beside the libraries that they need, and the start-up hook in every Python start.

    python benchmarks/startup.py [--repeats 5] [--rounds 200]

Commands and plain scripts run in turns. Figures are medians of the processor time of whole processes, whose modules are
compiled. `libraries` imports what the command works with and does nothing. For --version and --help that is a bare
`python -c pass`. `script` reads the same export with them and prints one table. `pandas` makes the same sums from it.

For the hook two environments that differ by it alone are made in a temporary folder. Their starts alternate, and the
difference of the medians is the cost.
"""

from __future__ import annotations

import argparse
import compileall
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OURS = "import sys; from moe_eval.cli import main; sys.exit(main(sys.argv[1:]))"
OPTIONS = "import sys, argparse, dataclasses, pathlib, typing"
TABLES = f"{OPTIONS}, concurrent.futures, sqlite3, tomllib, numpy"
DRAWING = "scipy.special, matplotlib.style, matplotlib.figure, matplotlib.backends.backend_agg"
REPORT = f"{OPTIONS}, numpy, msgspec, jinja2, packaging.version, {DRAWING}"
LIBRARIES = {
    "--version": "pass",
    "--help": "pass",
    "doctor": f"{OPTIONS}, json, platform, tomllib, importlib.metadata, msgspec",
    "kernels": TABLES,
    "compare": REPORT,
    "compare (charts)": f"{REPORT}, matplotlib.backends.backend_svg",
}
# what the same file takes with these libraries alone: read it, add up times by name, print a table
SCRIPT = f"""
{TABLES}
db = sqlite3.connect(sys.argv[2])
kernels = numpy.array(db.execute(
    'SELECT start, "end", demangledName FROM CUPTI_ACTIVITY_KIND_KERNEL').fetchall())
names = dict(db.execute("SELECT id, value FROM StringIds"))
ids, which = numpy.unique(kernels[:, 2], return_inverse=True)
times = numpy.bincount(which, kernels[:, 1] - kernels[:, 0])
for name, ms, launches in zip(ids.tolist(), (times / 1e6).tolist(), numpy.bincount(which).tolist()):
    print(f"{{names[name]:100}} {{ms:9.3f}} {{launches:6}}")
"""
PANDAS = """
import sqlite3, sys
import pandas as pd
db = sqlite3.connect(sys.argv[2])
kernels = pd.read_sql_query('SELECT start, "end", demangledName FROM CUPTI_ACTIVITY_KIND_KERNEL', db)
names = pd.read_sql_query("SELECT id, value FROM StringIds", db)
kernels = kernels.merge(names, "left", left_on="demangledName", right_on="id")
kernels["duration"] = kernels.end - kernels.start
print(kernels.groupby("value").duration.agg(["sum", "count"]).sort_values("sum"))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=200)
    args = parser.parse_args()
    _commands(args.repeats)
    with tempfile.TemporaryDirectory() as folder:
        pythons = {name: _environment(Path(folder) / name, name == "with") for name in ("without", "with")}
        seconds: dict[str, list[float]] = {name: [] for name in pythons}
        for _ in range(args.rounds):
            for name in random.sample(list(pythons), 2):
                started = time.perf_counter()
                subprocess.run([pythons[name], "-c", "pass"], check=True)
                seconds[name].append(time.perf_counter() - started)
    middle = {name: statistics.median(each) * 1e3 for name, each in seconds.items()}
    quarters = {name: statistics.quantiles(each, n=4) for name, each in seconds.items()}
    for name in pythons:
        low, _, high = (each * 1e3 for each in quarters[name])
        print(f"{name:8} the hook: {middle[name]:7.3f} ms (quartiles {low:.3f} to {high:.3f}), {args.rounds} starts")
    cost = middle["with"] - middle["without"]
    print(f"the hook costs {cost:.3f} ms a start, {middle['with'] / middle['without']:.3f}x of python -c pass")


def _commands(repeats: int) -> None:
    sys.path.insert(0, str(ROOT))
    from tests.doubles import nsys_database, recorded_arms

    compileall.compile_dir(ROOT / "moe_eval", quiet=1)  # an installed package is
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        nsys_database.write(folder / "trace.sqlite")
        for run, sizes in (("run", (1,)), ("charts", (1, 8))):  # of one batch size there is no chart
            loads = dict.fromkeys(sizes, [[100.0, 101.0], [100.0, 99.0]] * 2)
            (folder / run).mkdir()
            recorded_arms.write(folder / run, [recorded_arms.arm(name, loads) for name in ("bf16", "fp8")])
        words = {
            "doctor": ["--json"],
            "kernels": ["trace.sqlite"],
            "compare": ["run", "--output_dir", "out"],
            "compare (charts)": ["charts", "--output_dir", "out"],
        }
        for command, libraries in LIBRARIES.items():
            programs = {"moe-eval": OURS, "libraries": libraries}
            if command == "kernels":
                programs |= {"script": SCRIPT, "pandas": PANDAS}
            seconds: dict[str, list[float]] = {name: [] for name in programs}
            for _ in range(repeats):
                for name, code in programs.items():
                    seconds[name].append(_processor([code, command.split()[0], *words.get(command, [])], folder))
            ours, *others = (statistics.median(times) for times in seconds.values())
            peers = ", ".join(
                f"{ours / peer:.2f}x of {name} ({peer:.3f} s)"
                for name, peer in zip(list(programs)[1:], others, strict=True)
            )
            print(f"moe-eval {command:16} {ours:.3f} s of processor time: {peers}", flush=True)


def _processor(arguments: list[str], folder: Path) -> float:
    """Seconds of processor time of a Python process."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": ""}
    process = subprocess.Popen([sys.executable, "-c", *arguments], cwd=folder, env=environment, **quiet)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{arguments[0][:60]} ended with {status}")
    return usage.ru_utime + usage.ru_stime


def _environment(folder: Path, hooked: bool) -> str:
    venv.create(folder, symlinks=True)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "_source.pth").write_text(f"{ROOT}\n")
    if hooked:
        (site / "moe_eval.pth").write_text((ROOT / "packaging" / "moe_eval.pth").read_text())
    python = str(folder / "bin" / "python")
    check = "import sys; print(any(getattr(f, '__name__', '') == 'MoeEval' for f in sys.meta_path))"
    found = subprocess.run([python, "-c", check], capture_output=True, text=True, check=True).stdout.strip()
    if found != str(hooked):
        sys.exit(f"the hook is {'not ' if hooked else ''}active in {folder}: nothing was measured")
    return python


if __name__ == "__main__":
    main()
