"""Commands import the libraries that they use, and no other one."""

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
    "doctor": {"msgspec", "packaging"},
    "kernels": {"numpy", "msgspec", "rich"},
    "compare": {"numpy", "msgspec", "rich", "jinja2", "matplotlib", "packaging", "scipy"},
}


@pytest.mark.parametrize("command", USED)
def test_a_command_imports_what_it_uses_alone(command: str, tmp_path: Path) -> None:
    words = {
        "doctor": ["doctor", "--json"],
        "kernels": ["kernels", str(tmp_path / "trace.sqlite"), "--output", str(tmp_path / "trace.json")],
        "compare": ["compare", str(tmp_path / "run"), "--output_dir", str(tmp_path / "out")],
    }.get(command, [command])
    if command == "kernels":
        nsys_database.write(tmp_path / "trace.sqlite", steps=2, layers=2)
    if command == "compare":
        (tmp_path / "run").mkdir()
        loads = {1: [[100.0, 101.0], [100.0, 99.0]] * 2}
        made.write(tmp_path / "run", [made.arm("bf16", loads), made.arm("fp8", loads)])
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", PROGRAM, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 2), done.stderr[-2000:]
    imported = {name.partition(".")[0] for name in re.findall(r"^import time:.*\| +(\S+)$", done.stderr, re.MULTILINE)}
    assert "moe_eval" in imported
    assert imported & HEAVY - USED[command] == set()
