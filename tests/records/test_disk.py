"""The record of a run: whole or not at all on disk, the same when read, and without secrets."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from moe_eval.errors import UsageError
from moe_eval.records import disk
from moe_eval.records.disk import DatasetFacts, HarnessRecord

RECORD = HarnessRecord(
    run_id="0123456789abcdef0123456789abcdef",
    status="finished",
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


def refused(folder: Path) -> str:
    with pytest.raises(UsageError) as caught:
        disk.read(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_record_is_the_same_after_writing_and_reading(tmp_path: Path) -> None:
    RECORD.write(tmp_path)
    assert disk.read(tmp_path) == RECORD
    assert [file.name for file in tmp_path.iterdir()] == ["record.json"]


def test_a_record_of_a_run_that_has_just_begun_keeps_its_defaults(tmp_path: Path) -> None:
    begun = HarnessRecord("f" * 32, "running", "2026-01-02T03:04:05+00:00", {}, {})
    begun.write(tmp_path)
    assert disk.read(tmp_path) == begun
    replace(begun, status="failed", error="why").write(tmp_path)
    assert disk.read(tmp_path) == replace(begun, status="failed", error="why")


def test_json_is_written_as_utf8_text_that_others_may_read(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    disk.write_json(file, {"a": "é"})
    assert file.read_text(encoding="utf-8") == '{\n "a": "é"\n}\n'
    assert file.stat().st_mode & 0o777 == 0o644


def test_values_json_does_not_know_go_through_default(tmp_path: Path) -> None:
    disk.write_json(tmp_path / "x.json", {"a": Path("b")}, default=str)
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": "b"}


def interrupted(_: object) -> object:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("default", "error"), [(None, TypeError), (interrupted, KeyboardInterrupt)], ids=["unknown_type", "interrupted"]
)
def test_a_failure_while_serialising_leaves_the_old_file_alone(
    tmp_path: Path, default: Callable[[object], object] | None, error: type[BaseException]
) -> None:
    file = tmp_path / "x.json"
    disk.write_json(file, {"old": 1})
    before = file.read_bytes()
    with pytest.raises(error):
        disk.write_json(file, {"long": list(range(10_000)), "broken": object()}, default)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    file = tmp_path / "x.json"
    disk.write_json(file, {"old": 1})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(disk.os, step, full)
        with pytest.raises(OSError, match="No space left"):
            disk.write_json(file, {"new": 2})
    assert json.loads(file.read_text()) == {"old": 1}
    assert list(tmp_path.iterdir()) == [file]


def test_the_file_is_whole_at_the_moment_it_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    move = disk.os.replace

    def watching(source: str, target: Path) -> None:
        seen.append((Path(source).parent, json.loads(Path(source).read_text()), target.exists()))
        move(source, target)

    monkeypatch.setattr(disk.os, "replace", watching)
    disk.write_json(tmp_path / "x.json", {"a": 1})
    assert seen == [(tmp_path, {"a": 1}, False)]


def test_a_folder_without_a_record_is_refused(tmp_path: Path) -> None:
    assert "holds no record.json" in refused(tmp_path)
    assert "holds no record.json" in refused(tmp_path / "nowhere")
    (tmp_path / "record.json").mkdir()
    refused(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"null", b'"text"', b"{}", b'{"schema": 1}', b"\xff\xfe"])
def test_a_file_that_is_no_record_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "record.json").write_bytes(content)
    assert f"{tmp_path / 'record.json'} is not a record of a run" in refused(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw.pop("run_id"),
        lambda raw: raw.pop("notes"),
        lambda raw: raw.update(unknown=1),
        lambda raw: raw.update(datasets=None),
        lambda raw: raw.update(datasets=[{"task": "x"}]),
        lambda raw: raw.update(datasets=["x"]),
        lambda raw: raw.update(notes=None),
    ],
    ids=["no_id", "no_notes", "unknown_field", "no_data_sets", "half_a_data_set", "text_data_set", "null_notes"],
)
def test_a_record_with_the_wrong_fields_is_refused(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    raw = json.loads(json.dumps(asdict(RECORD)))
    change(raw)
    (tmp_path / "record.json").write_text(json.dumps(raw))
    assert "is not a record of a run" in refused(tmp_path)


def test_a_record_of_another_schema_is_refused(tmp_path: Path) -> None:
    disk.write_json(tmp_path / "record.json", asdict(RECORD) | {"schema": 2, "unknown": 1})
    assert "has schema 2; this moe_eval reads schema 1" in refused(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "hf_token",
        "token",
        "api_key",
        "OPENAI_API_KEY",
        "apikey",
        "aws_access_key",
        "password",
        "db_passwd",
        "client_secret",
        "credential",
    ],
)
def test_secrets_are_removed_at_any_depth(name: str) -> None:
    given = {name: "hunter2", "deep": [{"deeper": ({name: "hunter2"},)}]}
    assert disk.redact(given) == {name: "[redacted]", "deep": [{"deeper": [{name: "[redacted]"}]}]}


@pytest.mark.parametrize("value", [271828, ["271828"], {"value": "271828"}], ids=["number", "list", "mapping"])
def test_secrets_are_removed_whatever_their_type(value: Any) -> None:
    """The harness turns password=271828 of --model_args into a number."""
    assert "271828" not in repr(disk.redact({"password": value}))


KEPT = {
    "max_gen_toks": 256,
    "max_tokens": "512",
    "max_tokens_per_batch": "4096",
    "tokenizer": "a/b",
    "tokenizer_backend": "huggingface",
    "prefix_token_id": "3",
    "eot_token_id": 0,
    "add_bos_token": "on",
    "pretrained": "a/b",
    "token": None,
}


def test_what_only_sounds_like_a_secret_is_kept() -> None:
    assert disk.redact(KEPT) == KEPT
    assert disk.redact({"deep": [KEPT]}) == {"deep": [KEPT]}


def test_redaction_changes_nothing_but_a_copy() -> None:
    given = {"hf_token": "x", "list": [1, ({"password": "y"},)], 3: None}
    assert disk.redact(given) == {"hf_token": "[redacted]", "list": [1, [{"password": "[redacted]"}]], 3: None}
    assert given == {"hf_token": "x", "list": [1, ({"password": "y"},)], 3: None}


def test_user_and_password_of_an_address_never_reach_the_disk(tmp_path: Path) -> None:
    content = {
        "a": "https://user:hunter2@example.org/x?y=1", "b": ["mlflow at postgresql://hunter2@db/x failed"],
        "https://u:hunter2@key.org": 1, "mail": "someone@example.org", "plain": "https://example.org/@x",
    }  # fmt: skip
    disk.write_json(tmp_path / "x.json", content)
    text = (tmp_path / "x.json").read_text()
    assert "hunter2" not in text
    found = json.loads(text)
    assert found["a"] == "https://[redacted]@example.org/x?y=1"
    assert (found["mail"], found["plain"]) == (content["mail"], content["plain"])
