"""What lm-eval logs is read: of its own evaluator, of the plug-in, of earlier versions, and what is damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager

from moe_eval.errors import UsageError
from moe_eval.imports import harness_samples
from moe_eval.records.task_results import ArmTaskResults, Score
from tests.doubles import harness_results as made

_YAML = """
dataset_path: json
test_split: test
metadata: {{version: 1.0}}
dataset_kwargs:
  data_files: {{test: {rows}}}
  cache_dir: {cache}
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
"""
_CHOICE = 'output_type: multiple_choice\ndoc_to_choice: ["a", "b"]\nmetric_list: [{metric: acc}, {metric: acc_norm}]'
_TASKS = {
    **dict.fromkeys(("small_of_size", "large_of_size", "small_of_task", "large_of_task"), _CHOICE),
    "generate": (
        "output_type: generate_until\ngeneration_kwargs: {until: ['.']}\nmetric_list: [{metric: exact_match}]\n"
        "filter_list:\n"
        "- {name: first, filter: [{function: take_first}]}\n"
        "- {name: again, filter: [{function: take_first}]}"
    ),
    "cloze": "output_type: loglikelihood\nmetric_list: [{metric: perplexity}]",
    "pages": "output_type: loglikelihood_rolling\nmetric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]",
}


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder that lm-eval's own tracker makes of its dummy model, and the results in memory."""
    folder = tmp_path_factory.mktemp("lm_eval")
    for name, body in _TASKS.items():
        count = 2 if name.startswith("small") else 5
        rows = folder / f"{name}.jsonl"
        rows.write_text("".join(json.dumps({"question": f"q {at}", "answer": at % 2}) + "\n" for at in range(count)))
        text = f"task: {name}" + _YAML.format(rows=rows, cache=folder / "cache") + body
        (folder / f"{name}.yaml").write_text(text)
    for kind, by_size in (("size", "true"), ("task", "false")):
        metrics = f"aggregate_metric_list: [{{metric: acc, weight_by_size: {by_size}}}]"
        members = f"task: [small_of_{kind}, large_of_{kind}]"
        (folder / f"by_{kind}.yaml").write_text(f"group: by_{kind}\n{members}\n{metrics}")
    tracker = EvaluationTracker(output_path=str(folder / "out"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lm_eval.evaluator.add_env_info", lambda _: None)
        results = lm_eval.simple_evaluate(
            model="dummy",
            model_args="pretrained=org/dummy",
            tasks=["by_size", "by_task", "generate", "cloze", "pages"],
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
            bootstrap_iters=0,
        )
    assert results is not None
    samples = results.pop("samples")
    tracker.general_config_tracker.model_name_sanitized = "org__dummy"
    tracker.save_results_aggregated(results=results, samples=samples)
    for task, rows_of_task in samples.items():
        tracker.save_results_samples(task_name=task, samples=rows_of_task)
    return folder / "out" / "org__dummy", results


def test_lm_eval_s_own_files_are_read(logged: tuple[Path, dict[str, Any]]) -> None:
    folder, results = logged
    arm = harness_samples.read(folder)
    assert arm.model == "dummy"
    assert {task.task for task in arm.tasks} == set(_TASKS)
    for task in arm.tasks:
        assert len(task.documents) == (2 if task.task.startswith("small") else 5)
        for key, metric in task.metrics.items():
            assert metric.score == results["results"][task.task][key]
        assert all(row.scores.keys() == task.metrics.keys() for row in task.documents)
        assert task.version == "1.0"
        assert task.num_fewshot == 0
    by_name = {task.task: task for task in arm.tasks}
    assert list(by_name["generate"].metrics) == ["exact_match,first", "exact_match,again"]
    assert by_name["generate"].documents[0].answer == "lol"
    assert by_name["pages"].documents[0].scores["word_perplexity,none"].weight == 1
    assert by_name["pages"].metrics["word_perplexity,none"].higher_is_better is False
    for group in arm.groups:
        scores = [
            (by_name[task].metrics["acc,none"].score or 0.0, len(by_name[task].documents)) for task in group.tasks
        ]
        if group.group == "by_size" and len({score for score, _ in scores}) > 1:
            assert group.weights["acc,none"] == ("documents",)
        elif len({score for score, _ in scores}) > 1:
            assert group.weights["acc,none"] == ("tasks",)
    assert {group.group for group in arm.groups} == {"by_size", "by_task"}


def test_hashes_of_earlier_versions_are_computed(logged: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = logged
    for file in folder.iterdir():
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".jsonl":
            rows = [json.loads(line) for line in text.splitlines()]
            for row in rows:
                for name in ("doc_hash", "prompt_hash", "target_hash"):
                    del row[name]
            text = "\n".join(map(json.dumps, rows))
        (tmp_path / file.name).write_text(text, encoding="utf-8")
    assert harness_samples.read(tmp_path) == harness_samples.read(folder)


def read(folder: Path) -> ArmTaskResults:
    return harness_samples.read(folder)


def test_the_newest_results_count_and_other_seeds_are_repeats(tmp_path: Path) -> None:
    folder = made.write(tmp_path / "m", {"t": [0.0, 0.0]}, date="2026-01-01T00-00-00.1", config={"random_seed": 7})
    made.write(folder, {"t": [1.0, 0.0]})
    made.write(folder, {"t": [0.0, 0.0]}, date="2026-01-01T00-00-00.0")
    (task,) = read(folder).tasks
    assert [(row.number, row.repeat, row.scores["acc,none"].value) for row in task.documents] == [
        (0, 0, 1.0),
        (1, 0, 0.0),
        (0, 1, 0.0),
        (1, 1, 0.0),
    ]
    made.write(folder, {"t": [0.0, 1.0]}, date="2026-01-09T00-00-00.0", config={"limit": 2})
    (task,) = read(folder).tasks
    assert [row.scores["acc,none"] for row in task.documents] == [Score(0.0), Score(1.0)]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda lines: [lines[0][:40], lines[1]], "is damaged in line 1"),
        (lambda lines: [lines[0], "[]"], "is damaged in line 2"),
        (lambda lines: [lines[0], '{"doc_id": "x"}'], "is damaged in line 2"),
        (lambda lines: lines[:1], "holds 1 of 2 documents"),
    ],
    ids=["cut", "no_object", "no_number", "short"],
)
def test_damaged_samples_are_refused_in_a_sentence(tmp_path: Path, damage: Any, reason: str) -> None:
    folder = made.write(tmp_path / "m", {"t": [1.0, 0.0]})
    (file,) = folder.glob("samples_*")
    file.write_text("\n".join(damage(file.read_text().splitlines())))
    with pytest.raises(UsageError, match=reason) as caught:
        read(folder)
    assert "\n" not in str(caught.value)


def test_results_without_samples_and_damaged_results_are_refused(tmp_path: Path) -> None:
    folder = made.write(tmp_path / "m", {"t": [1.0, 0.0]})
    next(folder.glob("samples_*")).unlink()
    with pytest.raises(UsageError, match="Run lm_eval again with --log_samples"):
        read(folder)
    next(folder.glob("results_*")).write_text('{"results": 3}')
    with pytest.raises(UsageError, match="is not a record of lm_eval"):
        read(folder)
