"""`moe-eval run` on the shipped model: one real run, what it leaves, and how it is resumed and refused."""

from __future__ import annotations

import contextlib
import gzip
import html
import json
import math
import shlex
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from moe_eval.cli import main
from moe_eval.records import by_arm
from moe_eval.records.labels import Status
from moe_eval.runner import fit
from moe_eval.runner.folder import RunFolder
from tests.cli.commands import start
from tests.conftest import ROOT, SHIPPED
from tests.contract.commands import Commands
from tests.doubles.harness_runs import arm_of

SECRET = "hunter2-very-secret-token"
PATIENCE = 480  # seconds, on a machine that does other things as well
OPTIONS = [
    *("--emulate", "--precisions", "bf16,fp8", "--dataset", "moe_sample", "--input_len", "32", "--num_chunks", "6"),
    *("--batch_size", "1,2", "--output_len", "4", "--num_iterations", "2", "--loads", "1"),
    *("--tasks", "moe_sample", "--limit", "2"),
]


def read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


@pytest.fixture(scope="module")
def ran(
    empty_store: Path, commands: Commands, forked: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """A run that is killed outright in its second arm, resumed, and its output."""
    scratch = tmp_path_factory.mktemp("run")
    folder = scratch / "records"
    shutil.copy(empty_store, scratch / "own.db")
    words = ["run", *OPTIONS, "--resume", "--output_dir", str(folder)]
    own = {"MLFLOW_TRACKING_URI": f"sqlite:///{scratch / 'own.db'}", "CUDA_VISIBLE_DEVICES": "", "HF_TOKEN": SECRET}
    running = commands.start(*words, program="moe-eval", folder=scratch, double=None, variables=own)
    end = time.monotonic() + PATIENCE
    while not (folder / "arms" / "fp8" / "log.txt").is_file() or not (arms := running.arms()):
        assert time.monotonic() < end
        assert running.process.poll() is None, (scratch / "stderr").read_text()
        time.sleep(0.05)
    running.send(signal.SIGKILL)
    assert running.process.wait(60) == -signal.SIGKILL
    stamps = {file: file.stat().st_mtime_ns for file in (folder / "arms" / "bf16").glob("*_*.json")}
    assert len(stamps) >= 4, "the first arm's tasks were on disk"
    statuses = {arm.name: arm.latency and arm.latency.status for arm in by_arm.read(folder)}
    assert statuses == {"bf16": Status.FINISHED}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", SECRET)
        again = start(shlex.join(words[:-2]), scratch, forked)
    assert again.code == 0, again.err[-3000:]
    assert not any(arm.is_running() and arm.status() != psutil.STATUS_ZOMBIE for arm in arms), "no orphans"
    for file, stamp in stamps.items():
        assert file.name.startswith("load_") or file.stat().st_mtime_ns == stamp, f"{file} was made twice"
    return folder, again.out


def test_every_record_is_there(ran: tuple[Path, str]) -> None:
    folder, _ = ran
    run = read(folder / "run.json")
    assert (run["status"], run["evaluators"]["fp8"]) == ("finished", ["quality", "tasks"])
    reason = "it is emulated, so its speed says nothing"
    assert {"arm": "fp8", "evaluator": "latency", "reason": reason} in run["skipped"]
    perf = read(folder / "perf_bf16_cpu.json")
    assert (perf["status"], [row["batch_size"] for row in perf["shapes"]]) == ("finished", [1, 2])
    for row in perf["shapes"]:
        assert len(row["figures"]["metrics"]["e2e_ms"]["samples"]) == 2
        assert row["experts_per_layer_step"] >= 4
        assert row["floors"]["decode_step"]["predicted_ms"] > 0
    for arm in ("bf16", "fp8"):
        ppl = read(folder / f"ppl_{arm}_cpu.json")
        assert (ppl["figures"]["num_chunks"], ppl["emulated"]) == (6, arm == "fp8")
    comparison = read(folder / "comparison.json")
    assert comparison["reference"] == "bf16"
    assert comparison["pairs"][0]["quality"]["divergence"]["mean"] > 1e-4
    assert read(folder / "ppl_bf16_cpu.json")["noise_floor"]["divergence"]["mean"] < 1e-2
    kernels = read(folder / "kernels_bf16_cpu_b2_i32_o4.json")
    assert (kernels["status"], set(kernels["phases"]) >= {"prefill", "decode"}) == ("finished", True)
    assert (folder / "arms" / "bf16" / kernels["trace"]).is_file()
    kinds = ("perf", "ppl", "tasks", "kernels")
    files = [file for kind in kinds for file in folder.glob(f"{kind}_*.json")]
    assert {read(file)["origin"]["run_id"] for file in files} == {run["run_id"]}


def runs(folder: Path) -> dict[str, Run]:
    client = MlflowClient(f"sqlite:///{folder.parent / 'own.db'}")
    logged = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    return {arm_of(run): run for run in logged}


def test_mlflow_has_one_parent_and_a_child_for_each_arm(ran: tuple[Path, str]) -> None:
    folder, out = ran
    logged = runs(folder)
    assert {name: run.info.status for name, run in logged.items()} == dict.fromkeys(
        ("parent", "bf16", "fp8"), "FINISHED"
    )
    parent = logged["parent"].info.run_id
    assert out.count(f"run {parent} in experiment") == 2, (
        "it is the run that was opened before the work, and before the kill"
    )
    for arm in ("bf16", "fp8"):
        assert logged[arm].data.tags["mlflow.parentRunId"] == parent
        assert logged[arm].data.tags["moe_eval.checkpoint.precision"] == arm
    bf16, fp8 = (logged[arm].data.metrics for arm in ("bf16", "fp8"))
    perf, ppl = read(folder / "perf_bf16_cpu.json"), read(folder / "ppl_fp8_cpu.json")
    for row in perf["shapes"]:
        assert bf16[f"latency/{row['name']}/e2e_ms"] == row["figures"]["metrics"]["e2e_ms"]["median"]
    assert not [key for key in fp8 if key.startswith(("latency/", "kernels/"))], "an emulated arm has no speed"
    assert not any(math.isnan(value) for value in (*bf16.values(), *fp8.values()))
    assert fp8["quality/token_ppl"] == ppl["figures"]["perplexity"]
    divergence = read(folder / "comparison.json")["pairs"][0]["quality"]["divergence"]
    assert fp8["quality/kld_mean"] == divergence["mean"]
    assert bf16["kernels/b1_i32_o4/decode/expert_gemm_ms"] > 0
    inputs = {entry.dataset.digest for entry in logged["fp8"].inputs.dataset_inputs}
    assert (len(inputs), ppl["figures"]["dataset_digest"][:16] in inputs) == (2, True)
    for arm in ("bf16", "fp8"):
        (task,) = read(folder / f"tasks_{arm}_cpu.json")["results"]["tasks"]
        assert (
            logged[arm].data.metrics["harness/moe_sample/word_perplexity"]
            == (task["metrics"]["word_perplexity,none"]["score"])
        )


def test_artifacts_are_the_records_and_traces_and_hold_no_secret(ran: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = ran
    client = MlflowClient(f"sqlite:///{folder.parent / 'own.db'}")
    stored = {
        name: {
            artifact.path
            for path in ("", "kernels")
            for artifact in client.list_artifacts(run.info.run_id, path)
            if not artifact.is_dir
        }
        for name, run in runs(folder).items()
    }
    assert {"run.json", "rates.json"} <= stored["parent"]
    assert stored["fp8"] == {"quality.json", "tasks.json"}
    records = {"quality.json", "tasks.json", "latency.json", "kernels/b1_i32_o4.json", "breakdown.csv"}
    assert {*records, "trace_b1_i32_o4.json.gz"} <= stored["bf16"]
    for name, run in runs(folder).items():
        here = tmp_path / name
        here.mkdir()
        for path in stored[name]:
            content = Path(client.download_artifacts(run.info.run_id, path, str(here))).read_bytes()
            text = gzip.decompress(content) if path.endswith(".gz") else content
            assert SECRET.encode() not in text


def test_logging_again_changes_nothing(ran: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = ran
    before = {name: run.info.run_id for name, run in runs(folder).items()}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder.parent / 'own.db'}")
    assert main(["log", str(folder)]) == 0
    assert {name: run.info.run_id for name, run in runs(folder).items()} == before


def test_a_store_that_breaks_in_the_middle_keeps_nothing_half_made(
    ran: tuple[Path, str],
    empty_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, _ = ran
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{shutil.copy(empty_store, tmp_path / 'other.db')}")
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_artifacts", lambda *_: (_ for _ in ()).throw(OSError("disk is full")))
        assert main(["log", str(folder)]) == 2
    assert f"log it later with `moe-eval log {folder}`" in capsys.readouterr().err
    client = MlflowClient(f"sqlite:///{tmp_path / 'other.db'}")
    assert client.search_runs([experiment.experiment_id for experiment in client.search_experiments()]) == []
    assert main(["log", str(folder)]) == 0
    assert len(client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])) == 3


def test_the_comparison_and_the_report_are_on_disk_and_on_the_parent(ran: tuple[Path, str]) -> None:
    folder, out = ran
    comparison = read(folder / "comparison.json")
    (pair,) = comparison["pairs"]
    assert (comparison["reference"], pair["other"], pair["verdict"]) == ("bf16", "fp8", "open")
    assert f"\nfp8: {pair['sentence']}" in out
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert html.escape(pair["sentence"]) in page
    assert pair["sentence"].split(".")[0] in (folder / "report.md").read_text(encoding="utf-8")
    client = MlflowClient(f"sqlite:///{folder.parent / 'own.db'}")
    stored = {artifact.path for artifact in client.list_artifacts(runs(folder)["parent"].info.run_id)}
    assert {"comparison.json", "report.html", "report.md"} <= stored


def test_arms_are_compared_again_from_mlflow_as_from_the_folder(
    ran: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = ran
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder.parent / 'own.db'}")
    whole = read(folder / "comparison.json")
    for source in (str(folder), runs(folder)["parent"].info.run_id, "moe_eval"):
        assert main(["compare", source, "--output_dir", str(tmp_path / "out")]) == 0
        assert read(tmp_path / "out" / "comparison.json")["pairs"] == whole["pairs"], source
    capsys.readouterr()
    gated = ["compare", str(folder), "--output_dir", str(tmp_path / "out"), "--gate"]
    assert main([*gated, "kld<=1"]) == 0
    assert main([*gated, "kld<=0"]) == 1
    assert main([*gated, "speed>=1"]) == 2
    out = capsys.readouterr().out
    assert "kld<=0 fails for fp8 against bf16" in out
    assert "speed>=1 not decided for fp8 against bf16" in out


@pytest.mark.parametrize(
    "case",
    [
        (["no_such_thing"], "is no folder, no run id and no experiment"),
        (["0" * 32], "has no 0000"),
        (["{folder}", "{folder}", "{folder}"], "comes twice"),
        (["{folder}", "--gate", "speed>1"], "speed>1"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(
    ran: tuple[Path, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    case: tuple[list[str], str],
) -> None:
    sources, words = case
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{ran[0].parent / 'own.db'}")
    words_of_sources = [source.replace("{folder}", str(ran[0])) for source in sources]
    assert main(["compare", *words_of_sources, "--output_dir", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("moe-eval: ")
    assert words in line


def test_the_plan_was_shown_first(ran: tuple[Path, str]) -> None:
    _, out = ran
    assert out.startswith("Plan:\n  bf16: quality, tasks, latency, kernels; about ")
    assert "skipped: fp8 kernels: it is emulated" in out
    assert "b1_i32_o4, b2_i32_o4; 1 load of 2 iterations, one arm loaded at a time\n" in out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "holds a run already"),
        (["--resume", "--num_iterations", "3"], "other options (num_iterations)"),
    ],
)
def test_a_folder_with_another_run_is_left_alone(
    ran: tuple[Path, str],
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    before = (ran[0] / "run.json").read_bytes()
    assert main(["run", *OPTIONS, *options, "--output_dir", str(ran[0])]) == 2
    assert words in capsys.readouterr().err
    assert (ran[0] / "run.json").read_bytes() == before


def test_a_run_that_goes_on_is_planned_as_it_began_and_when_its_processes_have_ended(
    ran: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    folder = Path(shutil.copytree(ran[0], tmp_path / "out"))
    run = read(folder / "run.json")
    del run["evaluators"]["fp8"]
    (folder / "run.json").write_text(json.dumps(run))
    ended, looked, memory = threading.Event(), list[bool](), fit.memory
    monkeypatch.setattr(fit, "memory", lambda gpus: looked.append(ended.is_set()) or memory(gpus))
    with contextlib.ExitStack() as process:
        process.enter_context(RunFolder(folder).locked())
        release = threading.Timer(1, lambda: (ended.set(), process.close()))
        release.start()
        assert main(["run", *OPTIONS, "--resume", "--dry_run", "--output_dir", str(folder)]) == 0
        release.join()
    assert looked
    assert all(looked)
    assert "skipped: fp8: the run that goes on here began without it" in capsys.readouterr().out


def test_a_dry_run_shows_the_plan_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *OPTIONS, "--dry_run", "--output_dir", str(tmp_path / "out")]) == 0
    assert "fp8 (emulated): quality" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_the_example_in_the_repository_is_a_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = ROOT / "examples" / "run.yaml"
    assert main(["run", "--config", str(example), "--dry_run", "--output_dir", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "bf16: quality, latency, kernels" in out
    assert "nvfp4 (emulated): quality" in out
    assert "b1_i128_o16, b4_i128_o16" in out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--evaluators", "speed"], "quality, tasks, latency, kernels, serving. Did you mean latency?"),
        (["--evaluators", ""], "quality, tasks, latency, kernels"),
        (["--num_iterations", "0"], "--num_iterations 0 is out of range"),
        (["--warmup_iterations", "4", "--until", "decided"], "which --until decided never ends"),
        (["--timeout", "0"], "--timeout 0"),
        (["--batch_size", "many"], "a whole number or a list of them"),
        (["--dataset", "no_such_text"], "no_such_text"),
        (["--input_len", "1021", "--output_len", "9"], "1030"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    assert main(["run", *OPTIONS, *options, "--output_dir", str(tmp_path / "out")]) == 2
    shown = capsys.readouterr()
    assert words in shown.err
    assert "Traceback" not in shown.err
    assert not (tmp_path / "out").exists()


def test_a_plan_needs_neither_the_engine_nor_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", "--model_path", str(SHIPPED), "--engine", "trtllm", "--precisions", "bf16"]
    arguments += ["--dataset", "moe_sample", "--gpu", "8xH100"]
    assert main([*arguments, "--dry_run"]) == 0
    assert "bf16: quality, latency, kernels; about 8.0 GiB" in capsys.readouterr().out
    assert main(arguments) == 2
    assert "--gpu is for --dry_run. Give both, or leave --gpu out." in capsys.readouterr().err
    assert main([*arguments[:-1], "Z9", "--dry_run"]) == 2
    assert "There is no GPU 'Z9' to plan for. Give one of A100" in capsys.readouterr().err
