"""What is refused before anything is scored, and what stays of a run that breaks off."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from moe_eval.engines.transformers.engine import TransformersEngine
from moe_eval.errors import EngineError, UsageError
from moe_eval.harness.model import MoeLM
from tests.conftest import SHIPPED
from tests.harness.running import Command, record, run_folders, samples, sentence

TASKS = ["choice_local", "cloze_local", "generate_local", "pages_local"]
OURS = f"engine=transformers,pretrained={SHIPPED},dtype=float32,track=off"
Evaluate = Callable[..., Any]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def whole(evaluate: Evaluate, moe: MoeLM, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An undisturbed run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("whole"))
        return evaluate(moe, None, tasks=TASKS)


def check_kept(run: Path, whole: Any, tasks: list[str], error: str) -> None:
    """A record that failed has the figures and samples of these tasks, and of no other."""
    content = record(run)
    assert (content["status"], content["error"]) == ("failed", error)
    figures = {
        f"harness/{task}/{name.removesuffix(',none')}": value
        for task in tasks
        for name, value in whole["results"][task].items()
        if isinstance(value, float) and "stderr" not in name
    }
    kept = {key: value for key, value in content["metrics"].items() if key.startswith("harness/")}
    assert kept == figures
    assert {file.name for file in run.glob("samples_*")} == {f"samples_{task}.jsonl" for task in tasks}
    for task in tasks:
        prompts = [row["prompt_hash"] for row in whole["samples"][task]]
        assert [row["prompt_hash"] for row in samples(run, task)] == prompts
    assert [row["task"] for row in content["datasets"]] == tasks
    assert any(f"figures of {', '.join(tasks)} alone" in note for note in content["notes"])


@pytest.mark.parametrize("cached", [False, True])
def test_tasks_of_other_requests_are_kept_where_generation_fails(
    evaluate: Evaluate,
    moe_like: Callable[..., MoeLM],
    whole: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    *,
    cached: bool,
) -> None:
    def generate(_: Any, prompts: list[Any], *__: Any) -> list[Any]:
        if prompts:
            raise EngineError("It fell over.")
        return []

    monkeypatch.setattr(TransformersEngine, "generate", generate)
    tasks, model = ["choice_local", "cloze_local", "generate_local"], moe_like()
    options = {"use_cache": str(tmp_path / "cache")} if cached else {}
    for _ in range(2 if cached else 1):  # the second run has its answers from the cache
        with pytest.raises(EngineError):
            evaluate(model, None, tasks=tasks, num_fewshot=0, **options)
    for run in run_folders(tmp_path):
        check_kept(run, whole, ["choice_local", "cloze_local"], "EngineError: It fell over.")


def test_a_task_is_kept_whose_requests_share_the_call_that_fails(
    evaluate: Evaluate, moe: MoeLM, whole: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    score = TransformersEngine.score

    def score_most(engine: Any, windows: list[Any], done: Any, **options: Any) -> None:
        score(engine, windows[:-1], done=done, **options)
        raise EngineError("It fell over.")

    monkeypatch.setattr(TransformersEngine, "score", score_most)
    with pytest.raises(EngineError):
        evaluate(moe, None, tasks=["choice_local", "cloze_local"])
    check_kept(run_folders(tmp_path)[0], whole, ["choice_local"], "EngineError: It fell over.")


def test_a_task_whose_metric_fails_spoils_no_other(
    evaluate: Evaluate, moe: MoeLM, whole: Any, *, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, task_manager: Any
) -> None:
    task = task_manager.load(["cloze_local"])["tasks"]["cloze_local"]
    monkeypatch.setattr(task, "process_results", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluate(moe, None, tasks=["pages_local", task])
    (run,) = run_folders(tmp_path)
    check_kept(run, whole, ["pages_local"], "ZeroDivisionError: division by zero")
    assert record(run)["metrics"]["quality/token_ppl"] > 1


def test_figures_of_finished_tasks_are_in_mlflow(
    command: Command, empty_store: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copy(empty_store, tmp_path / "mlflow.db")

    def fall_over(*_: Any, **__: Any) -> None:
        raise EngineError("It fell over.")

    monkeypatch.setattr("moe_eval.harness.kernels.answers", fall_over)
    ended = command("--model", "trtllm_moe", "--tasks", "moe_sample,moe_kernels", "--limit", "1")
    assert ended.code == 1
    (run,) = MlflowClient().search_runs(["1"])
    assert run.info.status == "FAILED"
    assert run.data.metrics["quality/word_ppl"] > 1
    assert run.data.metrics == pytest.approx(record(run_folders(tmp_path)[0])["metrics"])


@pytest.mark.parametrize(
    ("gen_kwargs", "words"),
    [
        ("repetition_penlty=1.1", "Did you mean repetition_penalty?"),
        ("top_p=2", "top_p=2 does not suit"),
        ("presence_penalty=1", "Transformers has no generation argument presence_penalty"),
    ],
)
def test_a_generation_argument_is_refused_before_the_model_loads(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gen_kwargs: str, words: str
) -> None:
    monkeypatch.setattr("moe_eval.engines.registry.load", lambda *_: pytest.fail("loaded"))
    model = ("--model", "trtllm_moe", "--model_args", OURS)
    assert words in sentence(command(*model, "--tasks", "moe_sample", "--gen_kwargs", gen_kwargs))
    assert run_folders(tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"min_tokenz": 3}, "Did you mean min_tokens"),
        ({"max_gen_toks": 1024}, "leaves no room"),
        ({"min_tokens": 7}, "min_new_tokens=7 is more than the 6"),
    ],
)
def test_a_task_s_own_generation_argument_is_refused_before_anything_is_scored(
    evaluate: Evaluate,
    moe: MoeLM,
    monkeypatch: pytest.MonkeyPatch,
    *,
    task_manager: Any,
    changes: dict[str, Any],
    words: str,
) -> None:
    task = task_manager.load(["generate_local"])["tasks"]["generate_local"]
    task.set_config("generation_kwargs", changes, update=True)
    monkeypatch.setattr(TransformersEngine, "score", lambda *_, **__: pytest.fail("scored"))
    with pytest.raises(UsageError, match=words):
        evaluate(moe, None, tasks=["choice_local", "pages_local", task])


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"])
def test_several_processes_are_refused_in_one_sentence(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    arguments = ("--model", "trtllm_moe", "--model_args", OURS, "--tasks", "moe_sample")
    monkeypatch.setenv(variable, "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert f"Each of 2 processes ({variable}) would evaluate all documents" in sentence(command(*arguments))
    assert run_folders(tmp_path) == []
