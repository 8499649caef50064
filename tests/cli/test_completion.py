"""`moe-eval completion` in the shells themselves: commands, options, choices and paths."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from moe_eval.cli import main
from moe_eval.cli.options.commands import COMMANDS
from moe_eval.cli.options.option import options_of

_BASH = """
source "$1"
COMP_WORDS=("${@:2}")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_shtab_moe_eval
printf '%s\\n' "${COMPREPLY[@]}"
"""
RUN = {option.label for option in options_of(COMMANDS["run"].options).values()}


def script(shell: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    assert main(["completion", shell]) == 0
    file = folder / f"moe-eval.{shell}"
    file.write_text(capsys.readouterr().out)
    return file


def lines(command: list[str], folder: Path) -> set[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    assert done.stderr == ""
    return set(done.stdout.split("\n")) - {""}


@pytest.fixture
def here(tmp_path: Path) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "trace one.sqlite").touch()
    (folder / "trace_2.json").touch()
    (folder / "records").mkdir()
    return folder


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["ru"], {"run"}),
        ([""], set(COMMANDS)),
        (["run", "--"], {*RUN, "--help"}),
        (["run", "--batch_size", "1", "--sc"], {"--scope"}),
        (["run", "--scope", ""], {"experts", "all"}),
        (["run", "--engine", "v"], {"vllm"}),
        (["perf", "--precisions", "nv"], {"nvfp4"}),
        (["compare", "rec"], {"records"}),
        (["compare", "records", "tr"], {"trace one.sqlite", "trace_2.json"}),
        (["kernels", "trace_2.json", "tr"], {"trace one.sqlite", "trace_2.json"}),
        (["run", "--output_dir", ""], {"records"}),
        (["completion", ""], {"bash", "zsh", "fish"}),
        (["doctor", "--batch"], set()),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bash(
    words: list[str], completed: set[str], here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = script("bash", tmp_path, capsys)
    completions = lines(["bash", "--norc", "-c", _BASH, "bash", str(file), "moe-eval", *words], here)
    assert {name.rstrip("/") for name in completions} == completed


def test_zsh(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = script("zsh", tmp_path, capsys)
    folder = tmp_path / "functions"
    folder.mkdir()
    file.rename(folder / "_moe-eval")
    loaded = "fpath=($1 $fpath); autoload -Uz compinit; compinit -u -D; print $_comps[moe-eval]; autoload +X _moe-eval"
    assert lines(["zsh", "-f", "-c", loaded, "zsh", str(folder)], here) == {"_moe-eval"}


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("moe-eval ru", {"run"}),
        ("moe-eval run --scop", {"--scope"}),
        ("moe-eval run --scope ", {"experts", "all"}),
        ("moe-eval compare rec", {"records/"}),
        ("moe-eval kernels trace_", {"trace_2.json"}),
    ],
)
def test_fish(line: str, completed: set[str], here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = script("fish", tmp_path, capsys)
    asked = ["fish", "--no-config", "-c", f"source {file}; complete -C '{line}'"]
    assert {entry.partition("\t")[0] for entry in lines(asked, here)} == completed


def test_no_other_command_imports_it() -> None:
    program = "import sys; from moe_eval.cli import main; main(['--version']); print('shtab' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
