"""The record of a run of the harness: the same when read, and refused where it does not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from moe_eval.errors import UsageError
from moe_eval.records import disk, harness
from moe_eval.records.harness import DatasetFacts, HarnessRecord
from moe_eval.records.labels import Status

RECORD = HarnessRecord(
    run_id="0123456789abcdef0123456789abcdef",
    status=Status.FINISHED,
    started="2026-01-02T03:04:05+00:00",
    model_args={"pretrained": "a/b", "max_length": 512, "nested": {"list": [1, 2.5, None, True]}},
    settings={"num_fewshot": 5, "tasks": ["wikitext", "prüfung"]},
    seconds=12.5,
    error="a “quoted” reason\nof two lines",
    labels={"precision": "bf16", "max_length": 512},
    machine={"gpu": None, "cores": 2},
    versions={"torch": "2.8"},
    git="abc123",
    metrics={"wikitext/word_perplexity": 12.125, "wikitext/bits_per_byte": 0.1},
    datasets=(
        DatasetFacts("wikitext", "2.0", "hub:a:b", "test", 62, "0" * 16),
        DatasetFacts("x", "1", "local:x", "t", 1, "f"),
    ),
    notes=("first", "second"),
)


FOREIGN = "is not a record of lm_eval --model trtllm_moe"


def refused(folder: Path) -> str:
    with pytest.raises(UsageError) as caught:
        harness.read(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_record_is_the_same_after_writing_and_reading(tmp_path: Path) -> None:
    RECORD.write(tmp_path)
    assert harness.read(tmp_path) == RECORD
    assert [file.name for file in tmp_path.iterdir()] == ["record.json"]


def test_a_record_of_a_run_that_has_just_begun_keeps_its_defaults(tmp_path: Path) -> None:
    begun = HarnessRecord("f" * 32, Status.RUNNING, "2026-01-02T03:04:05+00:00", {}, {})
    begun.write(tmp_path)
    assert harness.read(tmp_path) == begun
    replace(begun, status=Status.FAILED, error="why").write(tmp_path)
    assert harness.read(tmp_path) == replace(begun, status=Status.FAILED, error="why")


def test_a_folder_without_a_record_is_refused(tmp_path: Path) -> None:
    assert "holds no record.json" in refused(tmp_path)
    assert "holds no record.json" in refused(tmp_path / "nowhere")
    (tmp_path / "record.json").mkdir()
    refused(tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        *((content, "is damaged") for content in (b"", b"{", b"\xff\xfe")),
        *((content, FOREIGN) for content in (b"[]", b"3", b"null", b'"text"', b'{"schema": 1}')),
        (b"{}", "has schema None"),
    ],
)
def test_a_file_that_is_no_record_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "record.json").write_bytes(content)
    assert f"{tmp_path / 'record.json'} {reason}" in refused(tmp_path)


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (lambda raw: raw.pop("run_id"), "missing required field `run_id`"),
        (lambda raw: raw.update(status="over"), "`$.status`"),
        (lambda raw: raw.update(datasets=None), "`$.datasets`"),
        (lambda raw: raw.update(datasets=[{"task": "x"}]), "`$.datasets[0]`"),
        (lambda raw: raw.update(datasets=["x"]), "`$.datasets[0]`"),
        (lambda raw: raw.update(notes=None), "`$.notes`"),
        (lambda raw: raw.update(metrics={"a": "b"}), "`$.metrics[...]`"),
    ],
    ids=["no_id", "no_status", "no_data_sets", "half_a_data_set", "text_data_set", "null_notes", "text_metric"],
)
def test_a_record_with_the_wrong_fields_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], path: str
) -> None:
    raw = json.loads(json.dumps(asdict(RECORD)))
    change(raw)
    (tmp_path / "record.json").write_text(json.dumps(raw))
    reason = refused(tmp_path)
    assert "is not a record of lm_eval" in reason
    assert path in reason


def test_a_record_of_schema_1_is_read_and_one_of_another_schema_is_refused(tmp_path: Path) -> None:
    """The fields of schema 1 are the same."""
    disk.write_json(tmp_path / "record.json", asdict(RECORD) | {"schema": 1})
    assert harness.read(tmp_path) == replace(RECORD, schema=1)
    disk.write_json(tmp_path / "record.json", asdict(RECORD) | {"schema": 3, "unknown": 1})
    assert "has schema 3. This moe_eval reads schema 1 and 2." in refused(tmp_path)
