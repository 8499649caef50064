"""`moe-eval run` on the shipped model: one real run, what it leaves, and how it is resumed and refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from moe_eval.cli import main

COMMAND = [sys.executable, "-c", "import sys; from moe_eval.cli import main; sys.exit(main())", "run"]
OPTIONS = [
    *("--emulate", "--precisions", "bf16,fp8", "--dataset", "moe_sample", "--input_len", "64", "--num_chunks", "12"),
    *("--batch_size", "1,2", "--output_len", "4", "--num_iterations", "2"),
]


def start(folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [*COMMAND, *OPTIONS, "--output_dir", str(folder), "--resume"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run that is killed outright in its second arm, resumed, and its output."""
    folder = tmp_path_factory.mktemp("run") / "out"
    running = start(folder)
    end = time.monotonic() + 240
    while not (folder / "arms" / "fp8" / "log.txt").is_file():
        assert time.monotonic() < end
        assert running.poll() is None, running.communicate()
        time.sleep(0.05)
    arms = psutil.Process(running.pid).children(recursive=True)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    stamps = {file: file.stat().st_mtime_ns for file in (folder / "arms" / "bf16").glob("*_*.json")}
    assert len(stamps) >= 4, "the first arm's steps were on disk"
    again = start(folder)
    out, err = again.communicate(timeout=240)
    assert again.returncode == 0, err[-3000:]
    assert not any(arm.is_running() and arm.status() != psutil.STATUS_ZOMBIE for arm in arms), "no orphans"
    for file, stamp in stamps.items():
        assert file.name.startswith("load_") or file.stat().st_mtime_ns == stamp, f"{file} was made twice"
    return folder, out


def test_every_record_is_there(ran: tuple[Path, str]) -> None:
    folder, _ = ran
    run = read(folder / "run.json")
    assert (run["status"], run["evaluators"]["fp8"]) == ("finished", ["perplexity"])
    assert ["fp8", "latency", "it is emulated, so its speed says nothing"] in run["skipped"]
    perf = read(folder / "perf_bf16_cpu.json")
    assert (perf["status"], [row["batch_size"] for row in perf["shapes"]]) == ("finished", [1, 2])
    for row in perf["shapes"]:
        assert len(row["metrics"]["e2e_ms"]["samples"]) == 2
        assert row["experts_per_layer_step"] >= 4
        assert row["floors"]["decode_step"]["fraction_of_floor"] > 0
    for arm in ("bf16", "fp8"):
        ppl = read(folder / f"ppl_{arm}_cpu.json")
        assert (ppl["num_chunks"], ppl["reference"], ppl["emulated"]) == (12, "bf16", arm == "fp8")
        assert ppl["divergence"]["mean"] == 0 if arm == "bf16" else ppl["divergence"]["mean"] > 1e-4
        assert ppl["noise_floor"]["divergence"]["mean"] < 1e-2
    kernels = read(folder / "kernels_bf16_cpu_b2_i64_o4.json")
    assert (kernels["status"], set(kernels["phases"]) >= {"prefill", "decode"}) == ("finished", True)
    assert (folder / "arms" / "bf16" / kernels["trace"]).is_file()


def test_the_plan_was_shown_first(ran: tuple[Path, str]) -> None:
    _, out = ran
    assert out.startswith("Plan:\n  bf16: perplexity, latency, kernels; about ")
    assert "skipped: fp8 kernels: it is emulated" in out
    assert "b1_i64_o4, b2_i64_o4; sequential, 2 iterations each" in out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "holds a run already"),
        (["--resume", "--num_iterations", "3"], "other options (num_iterations)"),
    ],
)
def test_a_folder_with_another_run_is_left_alone(
    ran: tuple[Path, str], capsys: pytest.CaptureFixture[str], options: list[str], words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    before = (ran[0] / "run.json").read_bytes()
    assert main(["run", *OPTIONS, *options, "--output_dir", str(ran[0])]) == 2
    assert words in capsys.readouterr().err
    assert (ran[0] / "run.json").read_bytes() == before


def test_a_dry_run_shows_the_plan_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *OPTIONS, "--dry_run", "--output_dir", str(tmp_path / "out")]) == 0
    assert "fp8 (emulated): perplexity" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--evaluators", "speed"], "perplexity, latency, kernels"),
        (["--evaluators", ""], "perplexity, latency, kernels"),
        (["--num_iterations", "0"], "--num_iterations 0 is too few"),
        (["--warmup_iterations", "2"], "give 5 or more"),
        (["--timeout", "0"], "--timeout 0"),
        (["--batch_size", "many"], "whole numbers"),
        (["--dataset", "no_such_text"], "no_such_text"),
        (["--input_len", "1021", "--output_len", "9"], "1030"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    assert main(["run", *OPTIONS, *options, "--output_dir", str(tmp_path / "out")]) == 2
    found = capsys.readouterr()
    assert words in found.err
    assert "Traceback" not in found.err
    assert not (tmp_path / "out").exists()
