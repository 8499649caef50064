"""`lm_eval --model trtllm_moe` with each imitated TensorRT-LLM: the figures, the labels, and every way it can end."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance
from mlflow import MlflowClient

from moe_eval.harness.model import MoeLM
from tests.conftest import SHIPPED
from tests.contract.commands import Commands, Ended
from tests.contract.conftest import ALIGNED, DOUBLES, VERSIONS

OLDEST, MIDDLE, NEWEST = (DOUBLES / name for name in ("v1_2_0", "v1_3_0rc8", "v1_4_0rc1"))
MODEL = f"pretrained={SHIPPED},dtype=float32"
DOCUMENTS = 14
# requests of the self-test on 1.2.0: one token, eight greedy ones, the logits, and two forms of log-probabilities
SELF_TEST = 12


def evaluate(model_args: str = MODEL, *more: str, model: str = "trtllm_moe", task: str = "moe_sample") -> list[str]:
    return ["--model", model, "--model_args", model_args, "--tasks", task, *more]


def record(folder: Path) -> dict[str, Any]:
    (file,) = folder.glob("benchmark_results/*/record.json")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def run_status(folder: Path) -> str:
    """How MLflow has the one run."""
    (run,) = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}").search_runs(["1"])
    return str(run.info.status)


@pytest.fixture(scope="module")
def moe() -> MoeLM:
    return MoeLM(pretrained=str(SHIPPED), engine="transformers", dtype="float32", track=False)


@pytest.fixture(scope="session")
def reference(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> tuple[float, Ended]:
    """Word perplexity of the same documents on Transformers, and its command, which had a double on its path."""
    folder = tmp_path_factory.mktemp("reference")
    ended = commands.run(*evaluate(f"{MODEL},engine=transformers,track=off"), folder=folder, double=NEWEST)
    assert ended.code == 0, ended.err[-3000:]
    return record(folder)["metrics"]["quality/word_ppl"], ended


@pytest.mark.parametrize("worker", ["in_process", "spawned"])
@pytest.mark.parametrize("version", VERSIONS, indirect=True, scope="session")
def test_word_perplexity_is_that_of_transformers_and_the_labels_say_what_ran(
    commands: Commands,
    reference: tuple[float, Ended],
    *,
    version: str,
    worker: str,
    double_path: Path,
    tmp_path: Path,
) -> None:
    arguments = evaluate(f"{MODEL},track=off,worker={worker}", "--batch_size", "auto")
    ended = commands.run(*arguments, folder=tmp_path, double=double_path)
    assert ended.code == 0, ended.err[-3000:]
    assert not ended.left
    found = record(tmp_path)
    assert found["status"] == "finished"
    assert found["metrics"]["quality/word_ppl"] == pytest.approx(reference[0], rel=1e-4)
    engine = found["labels"]["engine"]
    assert (engine["name"], engine["version"], engine["worker"]) == ("trtllm", version, worker)
    assert engine["precision"] == "fp32"
    experts = "TrtllmCutlassFusedMoeImpl" if version >= "1.4" else "CutlassFusedMoE"
    assert engine["moe_backend_observed"] == (experts if worker == "in_process" else None)
    own = "prompt_logprobs=0, checked against context_logits, themselves checked against generation"
    aligned = version in ALIGNED
    form = own if aligned else "context_logits, checked against generation"
    assert engine["scores_from"] == form
    assert ("Scores are read from context logits" in ended.err) != aligned


# the log-likelihood that lm-eval's own model gives for a text, or what it raises
THEIRS = """
import json, sys
from lm_eval.api.instance import Instance
from lm_eval.models.trtllm_causallms import TRTLLM

if __name__ == "__main__":
    model = TRTLLM(sys.argv[1], dtype="float32", max_input_len=500, max_output_len=100)
    request = Instance("loglikelihood_rolling", {}, (sys.argv[2],), 0)
    try:
        (found,) = model.loglikelihood_rolling([request], disable_tqdm=True)
    except Exception as error:
        found = type(error).__name__
    print(json.dumps(found))
"""
TEXT = "The Moon is a world of rock, and the tides follow it."


def test_the_harness_own_model_fails_or_is_wrong(
    commands: Commands, moe: MoeLM, version: str, double_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "theirs.py").write_text(THEIRS)
    ended = commands.run(
        *(str(tmp_path / "theirs.py"), str(SHIPPED), TEXT),
        program="python",
        folder=tmp_path,
        double=double_path,
        variables={"TLLM_WORKER_USE_SINGLE_PROCESS": "1"},
    )
    assert ended.code == 0, ended.err[-3000:]
    found = json.loads(ended.out.splitlines()[-1])
    if version != "1.3.0rc8":
        assert found == "KeyError"
        return
    # it runs, and takes a token's probability from the distribution of the token after it
    (true,) = moe.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (TEXT,), 0, ("task", 0, 1))])
    assert abs(found - true) > 1


def test_help_of_lm_eval_does_not_import_tensorrt_llm() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "lm_eval", "--help"],
        env={**os.environ, "PYTHONPATH": str(NEWEST)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "lm_eval" in imported
    assert "tensorrt_llm" not in imported


def test_transformers_runs_without_an_import_of_tensorrt_llm(reference: tuple[float, Ended]) -> None:
    assert math.isfinite(reference[0])
    assert reference[1].events == []


def test_a_worker_that_dies_ends_the_run_and_the_next_one_scores_the_rest_and_tells_no_secret(
    commands: Commands, reference: tuple[float, Ended], empty_store: Path, tmp_path: Path
) -> None:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    arguments = evaluate(f"{MODEL},worker=spawned", "--use_cache", str(tmp_path / "answers"))
    kept = 5
    fault = {"TRTLLM_DOUBLE": f"die_after={SELF_TEST + kept + 1}"}
    ended = commands.run(*arguments, folder=tmp_path, double=MIDDLE, variables=fault)
    assert ended.code == 1
    sentence = ended.sentence()
    assert "worker process" in sentence
    assert "--use_cache" in sentence
    assert not ended.left
    # the last request was sent just before the death; the record and MLflow came after it
    assert ended.at - ended.log.stat().st_mtime < 60
    found = record(tmp_path)
    assert found["status"] == "failed"
    assert "worker process" in found["error"]
    assert run_status(tmp_path) == "FAILED"
    assert ended.scored() >= kept

    again = tmp_path / "again"
    again.mkdir()
    shutil.copy(empty_store, again / "mlflow.db")
    variables = {"HF_TOKEN": "hf_planted", "NCCL_DEBUG": "WARN"}
    ended = commands.run(*arguments, folder=again, double=MIDDLE, variables=variables)
    assert ended.code == 0, ended.err[-3000:]
    assert ended.scored() == DOCUMENTS - kept
    assert record(again)["metrics"]["quality/word_ppl"] == pytest.approx(reference[0], rel=1e-4)
    assert "quality/token_ppl" not in record(again)["metrics"]
    engine = record(again)["labels"]["engine"]
    assert (engine["worker"], engine["moe_backend_observed"]) == ("spawned", None)
    (started,) = [event for event in ended.events if event["event"] == "worker"]
    assert started["env"]["NCCL_DEBUG"] == "WARN"
    assert "HF_TOKEN" not in started["env"]
    files = [file for name in ("benchmark_results", "mlruns") for file in (again / name).rglob("*")]
    for file in [*filter(Path.is_file, files), again / "mlflow.db"]:
        assert b"hf_planted" not in file.read_bytes(), file


def test_a_run_that_is_stopped_while_a_worker_scores_is_recorded_as_killed(
    commands: Commands, empty_store: Path, tmp_path: Path
) -> None:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    running = commands.start(*evaluate(f"{MODEL},worker=spawned"), folder=tmp_path, double=OLDEST)
    running.await_requests(SELF_TEST + 3)
    running.send(signal.SIGINT)
    ended = running.wait()
    assert ended.code == 130, ended.err[-3000:]
    assert "Traceback" not in ended.err
    assert not ended.left
    assert ended.scored() < DOCUMENTS
    assert record(tmp_path)["status"] == "killed"
    assert run_status(tmp_path) == "KILLED"


MEMORY = ("max_num_tokens", "max_batch_size", "kv_cache_free_gpu_memory_fraction")


@pytest.mark.parametrize(
    "case",
    [
        ("", f"oom_at={SELF_TEST + 3}", 2, MEMORY),
        ("", f"fail_at={SELF_TEST + 3}", 1, ("illegal memory access", "1.2.0")),
        ("", "shift_logits=1", 1, ("self-test", "doctor")),
        ("", "no_gpu", 2, ("nvidia-smi", "engine=transformers")),
        (",colour=blue", "", 2, ("colour", "1.2.0")),
    ],
)
def test_what_cannot_be_done_ends_with_one_sentence(
    commands: Commands, tmp_path: Path, case: tuple[str, str, int, tuple[str, ...]]
) -> None:
    more, fault, code, words = case
    ended = commands.run(
        *evaluate(f"{MODEL},track=off{more}"), folder=tmp_path, double=OLDEST, variables={"TRTLLM_DOUBLE": fault}
    )
    sentence = ended.sentence()
    assert ended.code == code, sentence
    for word in words:
        assert word in sentence
    assert not ended.left
    assert record(tmp_path)["status"] == "failed"


def test_a_rank_above_the_first_writes_no_record(commands: Commands, tmp_path: Path) -> None:
    arguments = evaluate(MODEL, "--limit", "1")
    variables = {"OMPI_COMM_WORLD_RANK": "1"}
    ended = commands.run(*arguments, folder=tmp_path, double=OLDEST, variables=variables)
    assert ended.code == 0, ended.err[-3000:]
    assert not (tmp_path / "benchmark_results").exists()
    assert not (tmp_path / "mlflow.db").exists()
