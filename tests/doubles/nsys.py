"""Stands in for Nsight Systems' `nsys`: runs a program and writes a report of every capture, which it can export.

A report and its export hold what real ones hold: the environment, the command line and the output of the program. The
variable FAKE_NSYS names what goes wrong.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.doubles import nsys_database

MODE, CAPTURES = "FAKE_NSYS", "FAKE_NSYS_CAPTURES"
PRINTED, ARGUMENT = "FAKE_NSYS_PRINTED", "FAKE_NSYS_ARGUMENT"  # what the program prints, and an argument of its
STEPS, LAYERS = 3, 2
ROOT = Path(__file__).resolve().parents[2]
# what a GPU would do in the program, which runs as `python -m MODULE`
_SHIM = """
import os, runpy, sys
from contextlib import contextmanager
import torch
from moe_eval.machine import nsys

@contextmanager
def ranged(name):
    yield

def start():
    with open(os.environ["FAKE_NSYS_CAPTURES"], "a") as file:
        file.write("capture\\n")

nsys.check_gpu = torch.cuda.synchronize = torch.cuda.profiler.stop = lambda: None
torch.cuda.profiler.start, torch.cuda.nvtx.range = start, ranged
print(os.environ.get("FAKE_NSYS_PRINTED", ""), flush=True)
module, *sys.argv[1:] = sys.argv[1:]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def install(folder: Path) -> Path:
    """Put the program into a folder, which is returned."""
    folder.mkdir(exist_ok=True)
    program = folder / "nsys"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from tests.doubles.nsys import main\nsys.exit(main(sys.argv[1:]))\n"
    )
    program.chmod(0o755)
    return folder


def main(words: Sequence[str]) -> int:
    """The program itself."""
    mode = os.environ.get(MODE)
    if words[0] == "export":
        return _export(words[1:], mode)
    options = _options(words)
    program = words[1 + len(options) :]
    if mode == "refuses":
        print("unrecognised option '--no-such-option'", file=sys.stderr)
        return 1
    captures = Path(f"{_base(options)}.captures")
    environment = {**os.environ, "NSYS_PROFILING_SESSION_ID": "7", CAPTURES: str(captures)}
    command = [program[0], "-c", _SHIM, *program[2:]]
    # it hands no descriptor on
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout, flush=True)
    count = len(captures.read_text().splitlines()) if captures.exists() else 0
    captures.unlink(missing_ok=True)
    if mode == "hangs":
        time.sleep(600)
    command = [*program, os.environ.get(ARGUMENT, "")]
    finish(words, count, {"environment": dict(os.environ), "command": command, "printed": done.stdout})
    return done.returncode


def finish(words: Sequence[str], captures: int, content: Mapping[str, object] | None = None) -> None:
    """Write the reports of so many captures, as `nsys profile WORDS` does when its program has ended."""
    if not words or os.environ.get(MODE) == "no report":
        return
    options = _options(words[words.index("profile") :])
    suffix = ".qdstrm" if os.environ.get(MODE) == "no importer" else ".nsys-rep"
    text = json.dumps(content or {"environment": dict(os.environ), "command": [], "printed": ""})
    if "--capture-range-end=stop" in options:
        captures = min(captures, 1)
        names = [""][:captures]
    else:
        names = [f".{number}" for number in range(1, captures + 1)]
    for name in names:
        Path(f"{_base(options)}{name}{suffix}").write_text(text)


def _options(words: Sequence[str]) -> list[str]:
    """The options that follow the first word."""
    end = next((at for at, word in enumerate(words[1:], 1) if not word.startswith("-")), len(words))
    return list(words[1:end])


def _base(options: Sequence[str]) -> str:
    (name,) = (option.removeprefix("--output=") for option in options if option.startswith("--output="))
    assert not re.search(r"%(?!%)", name.replace("%%", "")), "nsys would put a variable there"
    return name.replace("%%", "%")


def _export(words: Sequence[str], mode: str | None) -> int:
    if mode == "no export":
        print("unrecognised command 'export'", file=sys.stderr)
        return 1
    report, target = Path(words[-1]), next(word for word in words if word.startswith("--output="))
    content = json.loads(report.read_text())
    file = target.removeprefix("--output=")
    nsys_database.write(Path(file), steps=STEPS, layers=LAYERS, ranks=1)
    secrets = "\0".join([*content["environment"].values(), *content["command"], content["printed"]])
    with sqlite3.connect(file) as database:
        database.execute("INSERT INTO StringIds VALUES (999999, ?)", (secrets,))
        database.execute("INSERT INTO PROCESSES VALUES (1, 1, ?)", (" ".join(content["command"]),))
        database.executemany("INSERT INTO META_DATA_CAPTURE VALUES (?, ?)", content["environment"].items())
    return 0
