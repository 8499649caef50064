"""What the start-up hook costs every Python start: `python -c pass` with the hook against without it.

    python benchmarks/startup.py [--rounds 200]

Two environments that differ by the hook alone are made in a temporary folder; their starts alternate, and the
difference of the medians is the cost.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    args = parser.parse_args()
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
