"""What lm-eval logs is read: of its own evaluator, of the plug-in, of earlier versions, and what is damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager

from moe_eval.comparison import task_rows
from moe_eval.errors import UsageError
from moe_eval.imports import harness_documents, harness_samples
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
    **dict.fromkeys((f"{size}_of_{kind}" for kind in ("size", "task", "both") for size in ("small", "large")), _CHOICE),
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
    mixed = "aggregate_metric_list: [{metric: acc, weight_by_size: true}, {metric: acc_norm, weight_by_size: false}]"
    (folder / "mixed.yaml").write_text(f"group: mixed\ntask: [small_of_both, large_of_both]\n{mixed}")
    (folder / "all.yaml").write_text(f"group: all\ntask: [by_size, by_task, mixed]\n{mixed}")
    tracker = EvaluationTracker(output_path=str(folder / "out"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lm_eval.evaluator.add_env_info", lambda _: None)
        results = lm_eval.simple_evaluate(
            model="dummy",
            model_args="pretrained=org/dummy",
            tasks=["all", "generate", "cloze", "pages"],
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
    for rows in (by_name["small_of_size"].documents, by_name["generate"].documents):
        assert [row.prompt_text for row in rows] == [f"q {at}" for at in range(len(rows))]
    choices = by_name["large_of_size"].documents
    assert {row.answer for row in choices} <= {"a", "b"}
    assert [row.target_text for row in choices] == ["a", "b", "a", "b", "a"]
    assert all((row.margin or 0) > 0 for row in choices if row.scores["acc,none"].value == 1)
    assert all((row.margin or 0) <= 0 for row in choices if row.scores["acc,none"].value == 0)
    assert '"until": ["."]' in by_name["generate"].generation
    assert by_name["generate"].split_documents == 5
    assert by_name["pages"].documents[0].scores["word_perplexity,none"].weight == 1
    assert by_name["pages"].metrics["word_perplexity,none"].higher_is_better is False
    weights = {(group.group, key): names for group in arm.groups for key, names in group.weights.items()}
    for name, key, expected in (
        ("by_size", "acc,none", "documents"),
        ("by_task", "acc,none", "tasks"),
        ("mixed", "acc,none", "documents"),
        ("mixed", "acc_norm,none", "tasks"),
    ):
        assert expected in weights[name, key]
    assert {group.group for group in arm.groups} == {"by_size", "by_task", "mixed", "all"}


def test_groups_have_the_scores_that_lm_eval_gives_them(logged: tuple[Path, dict[str, Any]]) -> None:
    folder, results = logged
    arm = harness_samples.read(folder)
    rows = [row for row in task_rows.rows(arm, arm) if row.is_group]
    assert {(row.task, row.metric) for row in rows} == {
        *((name, "acc,none") for name in ("by_size", "by_task", "mixed", "all")),
        *((name, "acc_norm,none") for name in ("mixed", "all")),
    }
    for row in rows:
        assert row.reference == pytest.approx(results["groups"][row.task][row.metric])
        assert row.documents == (21 if row.task == "all" else 7)
        assert row.group == (None if row.task == "all" else "all")


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


@pytest.mark.parametrize(
    ("target", "prompts", "choices", "acc", "expected"),
    [
        ("1", ["q"], ["a", "b", "c"], 0.0, ("a", "b", -1.0)),  # by number
        ("c", ["q"], ["a", "b", "c"], 0.0, ("a", "c", -2.0)),  # by text
        ("1", ["q"], ["1", "0", "2"], 1.0, ("1", "1", 1.0)),  # by text, since number 1 is not the likeliest
        ("the end", ["it", "he"], ["the end", "the end"], 0.0, ("it", "he", -1.0)),  # prompts that differ
        ("1", ["q"], ["a", "b", "a", "b"], 0.0, ("a", "b", -1.0)),  # with every choice alone, for acc_mutual_info
        ("[1, 2]", ["q"], ["a", "b", "c"], 0.0, ("a", "[1, 2]", None)),  # several are right
    ],
)
def test_choices_have_the_margin_of_the_right_one(
    target: str, prompts: list[str], choices: list[str], acc: float, expected: tuple[str, str, float | None]
) -> None:
    """Log-likelihoods are -1, -2, ... in the order of the choices."""
    arguments = {
        f"gen_args_{at}": {"arg_0": prompts[at % len(prompts)], "arg_1": f" {choice}"}
        for at, choice in enumerate(choices)
    }
    responses = [[str(-1.0 - at), "False"] for at in range(len(choices))]
    line = made.sample(0, {"acc": acc}, target=target, arguments=arguments, filtered_resps=responses)
    (result,) = harness_documents.results([line], ["acc,none"])
    assert (result.answer, result.target_text, result.margin) == expected


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


def test_text_that_breaks_lines_elsewhere_is_one_line_of_samples(tmp_path: Path) -> None:
    """lm-eval writes text as it is: a line separator of Unicode is no end of a line of JSON."""
    folder = made.write(tmp_path / "m", {"t": [1.0, 0.0]}, prompts="a\u2028b\x85c\x0bd")
    (file,) = folder.glob("samples_*")
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
    file.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines), encoding="utf-8")
    (task,) = read(folder).tasks
    assert task.documents[1].prompt_text == "a\u2028b\x85c\x0bd 1"
    lines[0]["filtered_resps"] = ["half a pair \ud800"]
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    (task,) = read(folder).tasks
    assert task.documents[0].answer == "half a pair ?"


def test_tasks_are_in_the_order_of_their_evaluation(tmp_path: Path) -> None:
    for day, names in enumerate((("b", "c"), ("a", "b"), ("d",)), 1):
        made.write(
            tmp_path / "m", {name: [1.0] for name in names}, date=f"2026-01-0{day}T00-00-00.0", config={"limit": day}
        )
    assert [task.task for task in read(tmp_path / "m").tasks] == ["c", "a", "b", "d"]


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


def test_a_name_that_is_no_file_s_has_no_samples(tmp_path: Path) -> None:
    folder = made.write(tmp_path / "m", {"t": [1.0, 0.0]})
    (file,) = folder.glob("results_*")
    content = json.loads(file.read_text())
    content["results"] |= {name: {"acc,none": 0.5} for name in ("a/../b", "/", "\0")}
    file.write_text(json.dumps(content))
    assert [task.task for task in read(folder).tasks] == ["t"]


def test_results_without_samples_and_damaged_results_are_refused(tmp_path: Path) -> None:
    folder = made.write(tmp_path / "m", {"t": [1.0, 0.0]})
    next(folder.glob("samples_*")).unlink()
    with pytest.raises(UsageError, match="Run lm_eval again with --log_samples"):
        read(folder)
    next(folder.glob("results_*")).write_text('{"results": 3}')
    with pytest.raises(UsageError, match="is not a record of lm_eval"):
        read(folder)
