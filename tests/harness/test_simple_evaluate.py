"""Whole runs through the harness: its numbers against its own `hf` model's, and what is left on disk."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer

from moe_eval.checkpoint.shipped import SHIPPED, SHIPPED_NOTE
from moe_eval.data.documents import moe_sample
from moe_eval.engines.transformers.engine import TransformersEngine
from moe_eval.errors import UsageError
from moe_eval.harness.model import MoeLM
from tests.harness.running import record as read_record

TASKS = ["choice_local", "generate_local", "cloze_local", "pages_local"]
OURS = "engine=transformers,dtype=float32,track=off"
Evaluate = Callable[..., Any]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def both(evaluate: Evaluate, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any, Path]]:
    """What both models make of every local task, and where ours kept its record."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("both")
        patch.chdir(folder)
        results = evaluate("trtllm_moe", f"{OURS},pretrained={SHIPPED}", tasks=TASKS, device="cuda:0", batch_size=1)
        of_hf = evaluate(
            "hf", f"pretrained={SHIPPED},dtype=float32,logits_cache=false", tasks=TASKS, device="cpu", batch_size=2
        )
        yield results, of_hf, folder


def only_run(folder: Path) -> Path:
    [run] = (folder / "benchmark_results").iterdir()
    return run


def numbers(results: Any, task: str) -> dict[str, float]:
    return {key: value for key, value in results["results"][task].items() if isinstance(value, float)}


@pytest.mark.parametrize("task", TASKS)
def test_metrics_of_every_request_type_equal_hf_s(both: tuple[Any, Any, Path], task: str) -> None:
    results, of_hf, _ = both
    assert len(numbers(of_hf, task)) >= 1
    assert numbers(results, task) == pytest.approx(numbers(of_hf, task), rel=1e-4)
    assert results["n-samples"][task] == of_hf["n-samples"][task]


@pytest.mark.parametrize("task", TASKS)
def test_answers_to_every_document_equal_hf_s(both: tuple[Any, Any, Path], task: str) -> None:
    results, of_hf, _ = both
    for sample, hf_sample in zip(results["samples"][task], of_hf["samples"][task], strict=True):
        assert (sample["doc_hash"], sample["prompt_hash"]) == (hf_sample["doc_hash"], hf_sample["prompt_hash"])
        for [answer], [expected] in zip(sample["resps"], hf_sample["resps"], strict=True):
            if isinstance(expected, tuple):
                assert answer[1] == expected[1]
                assert answer[0] == pytest.approx(expected[0], rel=1e-4)
            else:
                assert answer == (expected if isinstance(expected, str) else pytest.approx(expected, rel=1e-4))


def test_a_run_leaves_record_results_and_samples_and_hf_s_leaves_nothing(both: tuple[Any, Any, Path]) -> None:
    results, _, folder = both
    run = only_run(folder)
    names = {"record.json", "results.json", *(f"samples_{task}.jsonl" for task in TASKS)}
    assert {file.name for file in run.iterdir()} == names
    stored = json.loads((run / "results.json").read_text(encoding="utf-8"))
    assert "samples" not in stored
    assert set(stored["results"]) == set(TASKS)
    for task in TASKS:
        rows = (run / f"samples_{task}.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(row)["doc_id"] for row in rows] == [row["doc_id"] for row in results["samples"][task]]


def test_record_labels_the_arm_and_keeps_every_number(both: tuple[Any, Any, Path]) -> None:
    results, _, folder = both
    record = read_record(only_run(folder))
    assert record["status"] == "finished"
    assert record["error"] is None
    assert record["settings"]["tasks"] == TASKS
    engine = record["labels"]["engine"]
    assert (engine["name"], engine["precision"], engine["device"]) == ("transformers", "fp32", "cpu")
    assert record["model_args"]["pretrained"] == str(SHIPPED)
    assert record["seconds"] > 0
    assert {"moe-eval", "lm-eval", "torch", "transformers"} <= set(record["versions"])
    for task in TASKS:
        for name, value in numbers(results, task).items():
            assert record["metrics"][f"harness/{task}/{name.removesuffix(',none')}"] == value
    assert [(row["task"], row["split"], row["documents"]) for row in record["datasets"]] == [
        (task, "test", 3) for task in TASKS
    ]
    assert record["notes"] == ["quality/ keys are of the task pages_local"]


def test_local_files_are_not_labelled_as_a_data_set_of_the_hub(both: tuple[Any, Any, Path]) -> None:
    sources = {row["source"] for row in read_record(only_run(both[2]))["datasets"]}
    assert not any(source.startswith("hub:") for source in sources)


def test_documents_of_several_windows_are_counted_once_each(evaluate: Evaluate, hf: HFLM, tmp_path: Path) -> None:
    results = evaluate("trtllm_moe", "dtype=float32,track=off,max_length=64", tasks=["moe_sample"], limit=2)
    tokens = sum(len(hf.tok_encode(wikitext_detokenizer({"page": page}))) for page in moe_sample()["test"]["page"][:2])
    assert tokens > 4 * 64
    assert results["config"]["moe_eval"]["scored"] == {"moe_sample": {"requests": 2, "tokens": tokens}}
    metrics = read_record(only_run(tmp_path))["metrics"]
    assert metrics["quality/tokens"] == tokens
    assert metrics["quality/token_ppl"] == pytest.approx(math.exp(metrics["quality/nats"] / tokens))


def test_quality_keys_of_the_shipped_sample_follow_from_hf_s_log_likelihoods(
    evaluate: Evaluate, hf: HFLM, requests_of: Any, tmp_path: Path
) -> None:
    results = evaluate("trtllm_moe", "dtype=float32,track=off", tasks=["moe_sample"], limit=2)
    pages = moe_sample()["test"]["page"][:2]
    texts = [wikitext_detokenizer({"page": page}) for page in pages]
    nats = -math.fsum(hf.loglikelihood_rolling(requests_of("loglikelihood_rolling", *((text,) for text in texts))))
    tokens = sum(len(hf.tok_encode(text)) for text in texts)
    record = read_record(only_run(tmp_path))
    metrics = record["metrics"]
    assert metrics["quality/word_ppl"] == results["results"]["moe_sample"]["word_perplexity,none"]
    assert metrics["quality/token_ppl"] == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    assert metrics["quality/nats"] == pytest.approx(nats, rel=1e-5)
    assert metrics["quality/tokens"] == tokens
    assert metrics["quality/words"] == sum(len(re.split(r"\s+", page)) for page in pages)
    assert metrics["quality/bytes"] == sum(len(page.encode()) for page in pages)
    assert metrics["quality/documents"] == 2
    assert metrics["quality/bits_per_byte"] == pytest.approx(nats / metrics["quality/bytes"] / math.log(2), rel=1e-5)
    assert record["notes"][0] == SHIPPED_NOTE
    assert "part of the documents only: not a result for the whole task" in record["notes"]
    assert record["datasets"][0]["source"] == "local:moe_sample"


def test_two_perplexity_tasks_have_no_quality_keys(evaluate: Evaluate, moe: MoeLM, tmp_path: Path) -> None:
    evaluate(moe, None, tasks=["moe_sample", "pages_local"], limit=1)
    record = read_record(only_run(tmp_path))
    assert not [key for key in record["metrics"] if key.startswith("quality/")]
    assert [note for note in record["notes"] if "no quality/ keys" in note and "moe_sample" in note]
    assert record["metrics"]["harness/pages_local/word_perplexity"] > 1


def test_samples_not_asked_for_are_kept_on_disk_only(evaluate: Evaluate, moe: MoeLM, tmp_path: Path) -> None:
    results = evaluate(moe, None, tasks=["pages_local"], log_samples=False)
    assert "samples" not in results
    assert len((only_run(tmp_path) / "samples_pages_local.jsonl").read_text().splitlines()) == 3


def test_a_model_used_again_counts_every_run_by_itself(evaluate: Evaluate, moe_like: Any, tmp_path: Path) -> None:
    model = moe_like()
    for _ in range(2):
        evaluate(model, None, tasks=["pages_local"])
    first, second = (read_record(run)["metrics"] for run in (tmp_path / "benchmark_results").iterdir())
    assert first == second
    assert "quality/token_ppl" in first


@pytest.mark.parametrize(
    ("raised", "status"),
    [(RuntimeError("the kernel\nfell over"), "failed"), (KeyboardInterrupt(), "killed"), (SystemExit(3), "killed")],
)
def test_a_run_that_breaks_off_leaves_its_record(
    evaluate: Evaluate, moe: MoeLM, monkeypatch: pytest.MonkeyPatch, raised: BaseException, status: str
) -> None:
    def score(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr(TransformersEngine, "score", score)
    with pytest.raises(type(raised)):
        evaluate(moe, None, tasks=["pages_local"])
    run = only_run(Path.cwd())
    record = read_record(run)
    assert record["status"] == status
    assert record["error"].startswith(type(raised).__name__)
    assert " ".join(str(raised).split()) in record["error"]
    assert record["metrics"] == {}
    assert [file.name for file in run.iterdir()] == ["record.json"]


def test_arguments_that_are_refused_leave_no_record(evaluate: Evaluate, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="int3"):
        evaluate("trtllm_moe", "precision=int3,track=off", tasks=["pages_local"])
    assert not (tmp_path / "benchmark_results").exists()
