"""Files of a task that the harness would wait for, or read for ever."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from moe_eval.data import task_files
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
