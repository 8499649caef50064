"""Files of a task that the harness would wait for, or read for ever."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from moe_eval.data import harness_tasks, task_files
from moe_eval.data.harness_tasks import TaskOptions
from moe_eval.errors import UsageError

TASKS = {
    "pipe.yaml itself": None,
    "included": "task: a\ninclude: [words.yaml, pipe.yaml]",
    "included by an included one": "task: a\ninclude: deep.yaml",
    "included in a group of a group": "group: a\ntask:\n- group: b\n  task:\n  - {task: c, include: pipe.yaml}",
    "code": "task: a\nprocess_docs: !function pipe.documents",
    "data of a split": "task: a\ndataset_kwargs: {data_files: {test: [FOLDER/words.yaml, FOLDER/pipe.yaml]}}",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "words.yaml").write_text(
        "task: words\nprocess_docs: !function sys.exit\nx: !what [1]", encoding="utf-8"
    )
    (tmp_path / "deep.yaml").write_text("include: ./pipe.yaml", encoding="utf-8")
    for name in ("pipe.yaml", "pipe.py"):
        os.mkfifo(tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("place", TASKS)
def test_a_pipe_is_told_wherever_a_task_names_it(place: str, folder: Path) -> None:
    file = folder / "pipe.yaml"
    if text := TASKS[place]:
        (file := folder / "task.yaml").write_text(text.replace("FOLDER", str(folder)), encoding="utf-8")
    with pytest.raises(UsageError, match=r"pipe\.(yaml|py) is a pipe\. Mend it\.$"):
        task_files.check(file, "Mend it.")


@pytest.mark.parametrize(
    "text",
    [
        "task: a\ninclude: [words.yaml, words.yaml]",
        "task: a\ninclude: ../FOLDER/task.yaml",
        "task: a\ndataset_kwargs: {data_files: {test: [absent/*.json, FOLDER, 'https://x/y']}}",
        "task: [",
        "[" * 600,
        "include: [3, absent.yaml]",
    ],
)
def test_the_rest_is_left_to_the_harness(text: str, folder: Path) -> None:
    (file := folder / "task.yaml").write_text(text.replace("FOLDER", folder.name), encoding="utf-8")
    assert task_files.check(file, "Mend it.") is None


def test_a_group_by_its_path_has_the_tasks_beside_it(tmp_path: Path) -> None:
    (tmp_path / "data.py").write_text(
        "from datasets import Dataset\ndef rows(**_): return {'test': Dataset.from_list([{'text': 'a'}])}"
    )
    task = (
        "custom_dataset: !function data.rows\noutput_type: generate_until\ntest_split: test\n"
        "doc_to_text: text\ndoc_to_target: text\nmetric_list: [{metric: exact_match}]\n"
    )
    (tmp_path / "beside.yaml").write_text(f"task: beside\n{task}")
    inline = "".join(f"    {line}\n" for line in f"task: inline\n{task}".splitlines())
    (file := tmp_path / "group.yaml").write_text(
        f"group: both\ntask:\n- beside\n- group: inner\n  task:\n  -\n{inline}"
    )
    tasks = harness_tasks.loaded(str(file), TaskOptions(()))
    assert list(tasks["tasks"]) == ["beside", "both::inner::inline"]
    assert tasks["group_map"] == {"both": ["beside", "both::inner"], "both::inner": ["both::inner::inline"]}
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(UsageError, match=r"pipe\.yaml is a pipe\."):
        harness_tasks.loaded(str(file), TaskOptions(()))
