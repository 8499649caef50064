"""The `lm_eval` command with our model: the main job, and one sentence where it cannot be done."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from moe_eval.data.documents import split_pages
from moe_eval.engines.transformers.engine import TransformersEngine
from tests.conftest import SAMPLE, SHIPPED
from tests.harness.running import Command, Ended, record, run_folders, sentence

OURS = f"engine=transformers,pretrained={SHIPPED},dtype=float32"


def only_record(folder: Path) -> dict[str, Any]:
    (run,) = run_folders(folder)
    return record(run)


def results(folder: Path) -> dict[str, float]:
    (file,) = folder.rglob("results_*.json")
    (task,) = json.loads(file.read_text())["results"].values()
    return {key: task[f"{key},none"] for key in ("word_perplexity", "byte_perplexity", "bits_per_byte")}


def compare_with_hf(command: Command, folder: Path, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOE_EVAL_WIKITEXT", str(raw))
    by_model = {}
    for model, arguments in (("trtllm_moe", f"{OURS},track=off"), ("hf", f"pretrained={SHIPPED},dtype=float32")):
        options = ("--model", model, "--model_args", arguments, "--tasks", "wikitext_local", "--batch_size", "4")
        ended = command(*options, "--output_path", str(folder / model))
        assert ended.code == 0, ended.err
        by_model[model] = results(folder / model)
    assert by_model["trtllm_moe"] == pytest.approx(by_model["hf"], rel=1e-4)


def test_same_figures_as_hf_on_the_sample(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compare_with_hf(command, tmp_path, SAMPLE, monkeypatch)


def test_same_figures_as_hf_on_pages_of_wikitext(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wikitext: Path
) -> None:
    """On every 16th page, of 2 to 10 windows: all of them take minutes and repeat these."""
    pages = list(split_pages(wikitext.read_bytes().decode()))[::16]
    raw = tmp_path / "pages.raw"
    raw.write_bytes("\n".join(pages).encode())
    assert list(split_pages(raw.read_bytes().decode())) == pages
    compare_with_hf(command, tmp_path, raw, monkeypatch)


def test_without_a_model_the_shipped_one_runs_and_says_so(command: Command, tmp_path: Path) -> None:
    ended = command("--model", "trtllm_moe", "--tasks", "moe_sample", "--limit", "2", "--batch_size", "auto")
    assert ended.code == 0, ended.err
    assert "No model was named" in ended.err
    assert "token_ppl" in ended.out
    assert "mlflow ui" in ended.out
    content = only_record(tmp_path)
    assert content["status"] == "finished"
    assert any("No model was named" in note for note in content["notes"])
    assert (tmp_path / "mlflow.db").is_file()
    assert (tmp_path / "mlruns").is_dir()


def test_a_tracking_server_that_does_not_answer_costs_no_result(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    ended = command("--model", "trtllm_moe", "--tasks", "moe_sample", "--limit", "1")
    assert ended.code == 2
    assert "word_perplexity" in ended.out
    assert "moe-eval log" in ended.err
    assert "Traceback" not in ended.err
    assert only_record(tmp_path)["status"] == "finished"


def test_the_standard_task_offline_names_the_ones_that_work(command: Command, tmp_path: Path) -> None:
    ended = command("--model", "trtllm_moe", "--model_args", f"{OURS},track=off", "--tasks", "wikitext")
    check_sentence(ended, ["wikitext_local", "moe_sample"])
    assert only_record(tmp_path)["status"] == "failed"


@pytest.mark.parametrize("limit", ["0", "-1"])
def test_a_limit_that_leaves_nothing_gets_one_sentence(command: Command, limit: str, tmp_path: Path) -> None:
    arguments = ("--model", "trtllm_moe", "--model_args", OURS, "--tasks", "moe_sample", "--limit", limit)
    check_sentence(command(*arguments), ["--limit"])
    assert not (tmp_path / "benchmark_results").exists()


def test_a_secret_given_as_an_unknown_argument_is_not_shown(command: Command, tmp_path: Path) -> None:
    arguments = f"{OURS},hf_token=hf_planted"
    ended = command("--model", "trtllm_moe", "--model_args", arguments, "--tasks", "moe_sample")
    check_sentence(ended, ["hf_token"])
    assert "hf_planted" not in ended.out + ended.err
    assert not (tmp_path / "benchmark_results").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_stopped_is_recorded_as_killed(
    command: Command,
    empty_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    number: signal.Signals,
    code: int,
) -> None:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    monkeypatch.setattr(TransformersEngine, "score", lambda *_, **__: signal.raise_signal(number))
    ended = command("--model", "trtllm_moe", "--tasks", "moe_sample", "--limit", "1")
    assert ended.code == code
    assert "Traceback" not in ended.err
    assert "Record: " in ended.err
    assert "MLflow: " in ended.err
    assert only_record(tmp_path)["status"] == "killed"
    (run,) = MlflowClient().search_runs(["1"])
    assert run.info.status == "KILLED"


def test_spaces_between_model_arguments_do_not_matter(command: Command) -> None:
    arguments = f"{OURS}, max_length=128, track=off"
    ended = command("--model", "trtllm_moe", "--model_args", arguments, "--tasks", "moe_sample", "--limit", "1")
    assert ended.code == 0, ended.err
    assert "window 128" in ended.out


def broken(folder: Path, fault: str) -> Path:
    """A copy of the shipped model with one thing wrong."""
    copy = folder / fault.replace(" ", "-")
    shutil.copytree(SHIPPED, copy)
    if fault == "no config":
        (copy / "config.json").unlink()
    elif fault == "cut weights":
        weights = copy / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif fault == "no tokenizer":
        (copy / "tokenizer.json").unlink()
    elif fault == "other tokenizer":
        file = copy / "tokenizer.json"
        tokenizer = json.loads(file.read_text())
        tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "id": 5000, "content": "<|more|>"})
        tokenizer["model"]["vocab"]["<|more|>"] = 5000
        file.write_text(json.dumps(tokenizer))
    return copy


@pytest.mark.parametrize(
    ("arguments", "task", "parts"),
    [
        ("engine=onnx", "moe_sample", ["onnx", "transformers"]),
        (f"pretrained={SHIPPED}", "moe_sample", ["moe-eval[trtllm]", "engine=transformers"]),
        ("engine=trtllm", "moe_sample", ["pretrained="]),
        (f"{OURS},precision=fp7", "moe_sample", ["fp7", "fp8"]),
        (f"{OURS},precision=fp8", "moe_sample", ["fp8", "bf16"]),
        (OURS, "no_such_task", ["no_such_task", "lm_eval ls tasks"]),
        (f"{OURS},max_length=2048", "moe_sample", ["2048", "1024"]),
        (f"{OURS},colour=blue", "moe_sample", ["colour"]),
        (f"{OURS},track=perhaps", "moe_sample", ["track=perhaps"]),
        (f"{OURS},max_length=64.5", "moe_sample", ["max_length=64.5"]),
        (f"{OURS},max_tokens_per_batch=0", "moe_sample", ["max_tokens_per_batch=0"]),
        ("engine=transformers,pretrained=/no/such/folder", "moe_sample", ["/no/such/folder"]),
        ("engine=transformers,pretrained=no-such-org/no-such-model", "moe_sample", ["no-such-model", "hub"]),
        (OURS, "wikitext_local", ["MOE_EVAL_WIKITEXT"]),
    ],
)
def test_bad_arguments_get_one_sentence(command: Command, arguments: str, task: str, parts: list[str]) -> None:
    arguments = f"track=off,{arguments},device=cpu"
    check_sentence(command("--model", "trtllm_moe", "--model_args", arguments, "--tasks", task), parts)


@pytest.mark.parametrize(
    ("fault", "parts"),
    [
        ("no config", ["config.json"]),
        ("cut weights", ["model.safetensors", "corrupt"]),
        ("no tokenizer", ["tokenizer"]),
        ("other tokenizer", ["5000", "4096"]),
    ],
)
def test_a_broken_checkpoint_gets_one_sentence(command: Command, tmp_path: Path, fault: str, parts: list[str]) -> None:
    arguments = f"engine=transformers,pretrained={broken(tmp_path, fault)},track=off"
    check_sentence(command("--model", "trtllm_moe", "--model_args", arguments, "--tasks", "moe_sample"), parts)


def check_sentence(ended: Ended, parts: list[str]) -> None:
    message = sentence(ended)
    for part in parts:
        assert part in message


def test_an_old_file_store_gets_one_sentence(command: Command, tmp_path: Path) -> None:
    (tmp_path / "mlruns" / "0").mkdir(parents=True)
    (tmp_path / "mlruns" / "0" / "meta.yaml").write_text("name: Default\n")
    ended = command("--model", "trtllm_moe", "--tasks", "moe_sample", "--limit", "1")
    assert ended.code == 2
    assert "word_perplexity" in ended.out
    assert "migrate-filestore" in ended.err
    assert only_record(tmp_path)["status"] == "finished"


def test_other_models_go_through_untouched(command: Command, tmp_path: Path) -> None:
    ended = command("--model", "dummy", "--tasks", "moe_sample", "--limit", "1")
    assert ended.code == 0, ended.err
    assert not (tmp_path / "benchmark_results").exists()
    assert not (tmp_path / "mlflow.db").exists()
