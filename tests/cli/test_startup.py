"""Commands import the libraries and the parts of moe_eval that they use, and no others."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.doubles import nsys_database
from tests.doubles import recorded_arms as made

PROGRAM = "import sys; from moe_eval.cli import main; sys.exit(main(sys.argv[1:]))"
HEAVY = {
    *("torch", "transformers", "mlflow", "datasets", "lm_eval", "scipy", "pandas", "pyarrow", "huggingface_hub"),
    *("numpy", "msgspec", "rich", "jinja2", "matplotlib", "yaml", "packaging", "pydantic", "safetensors", "tqdm"),
}
# what every command may import of them
USED = {
    "--help": set[str](),
    "--version": set[str](),
    "doctor": {"msgspec"},
    "kernels": {"numpy"},
    "compare": {"numpy", "msgspec", "jinja2", "matplotlib", "packaging", "scipy"},
}
# modules of Python's own that cost milliseconds, which what prints a text alone has no use for
SLOW = {"argparse", "ast", "dataclasses", "enum", "inspect", "json", "pathlib", "re", "typing"}
_BASE = {"errors", "frozen", "cli", "outside", "records", "machine", "checkpoint"}
ROOMS = {
    "--help": {"errors", "cli"},
    "--version": {"errors", "cli"},
    "doctor": {*_BASE, "emulation", "engines"},
    "kernels": {*_BASE, "evaluators", "traces", "report"},
    "compare": {
        *_BASE,
        *("exits", "stats", "data", "evaluators", "imports", "comparison", "sharing", "tracking", "report"),
    },
}
# of these rooms a command has no use for what others need
UNUSED = {
    "kernels": {
        *("cli.options.measuring", "cli.request", "records.comparison", "records.latency", "report.progress"),
        "traces.readers.nsys_stats",
    },
    "doctor": {"engines.tables"},
    "compare": {"cli.options.measuring", "cli.request", "tracking.fetch", "report.progress"},
}


def imports_of(*arguments: str) -> set[str]:
    command = [sys.executable, "-X", "importtime", "-c", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 2), done.stderr[-2000:]
    return set(re.findall(r"^import time:.*\| +(\S+)$", done.stderr, re.MULTILINE))


def words_of(command: str, folder: Path) -> list[str]:
    """The words of a command, and in the folder what it reads."""
    if command == "kernels":
        nsys_database.write(folder / "trace.sqlite", steps=2, layers=2)
        return ["kernels", str(folder / "trace.sqlite")]
    if command == "compare":
        (folder / "run").mkdir()
        loads = {1: [[100.0, 101.0], [100.0, 99.0]] * 2}
        made.write(folder / "run", [made.arm("bf16", loads), made.arm("fp8", loads)])
        return ["compare", str(folder / "run"), "--output_dir", str(folder / "out")]
    return ["doctor", "--json"] if command == "doctor" else [command]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="only Linux lists a process's threads")
@pytest.mark.parametrize("command", ["kernels", "compare"])
def test_a_command_that_reads_starts_no_thread_for_products(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    after = "; import os; print(len(os.listdir('/proc/self/task')), os.environ['OPENBLAS_NUM_THREADS'])"
    program = [sys.executable, "-c", "import sys; from moe_eval.cli import main; main(sys.argv[1:])" + after]
    program += words_of(command, tmp_path)

    def ended() -> list[str]:
        return subprocess.run(program, capture_output=True, text=True, check=True).stdout.split()[-2:]

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)  # NumPy's library would take it
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    assert ended() == ["1", "1"]
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")
    assert ended()[1] == "2", "what a user has chosen stays"


@pytest.mark.parametrize("command", USED)
def test_a_command_imports_what_it_uses_alone(command: str, tmp_path: Path) -> None:
    imported = imports_of(PROGRAM, *words_of(command, tmp_path))
    tops = {name.partition(".")[0] for name in imported}
    assert "moe_eval" in tops
    assert tops & HEAVY - USED[command] == set()
    assert "numpy.ma" not in imported or command != "kernels", "np.median imports it"
    ours = {name.removeprefix("moe_eval.") for name in imported if name.startswith("moe_eval.")}
    assert {name.partition(".")[0] for name in ours} <= ROOMS[command]
    assert not ours & UNUSED.get(command, set())
    if not USED[command]:
        assert not (imported - imports_of("")) & SLOW, "beside what this environment imports in every start"
