"""Records on disk: whole or not at all, read back by their class, and without secrets."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from moe_eval.errors import UsageError
from moe_eval.records import disk


@dataclass(frozen=True)
class Figure:
    """A record of one number by size."""

    by_size: dict[int, float | None]
    notes: tuple[str, ...] = ()
    schema: int = 2


def read(file: Path) -> Figure:
    return disk.read_record(file, Figure, schemas=(2,), maker="moe-eval perf")


def test_a_record_is_the_same_after_writing_and_reading(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    disk.write_record(file, Figure({8: 1.5, 1: None}, ("é",)))
    assert read(file) == Figure({8: 1.5, 1: None}, ("é",))
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_a_number_that_is_none_is_missing(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    disk.write_record(file, Figure({1: float("nan"), 2: float("inf")}))
    assert read(file) == Figure({1: None, 2: None})
    file.write_text('{"schema": 2, "by_size": {"1": NaN, "2": -Infinity}}')
    assert read(file) == Figure({1: None, 2: None})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "is damaged"),
        ("[" * 100_000, "is damaged"),
        ("[]", "is not a record of moe-eval perf. Take it out of the folder."),
        ('{"schema": 1}', "has schema 1. This moe_eval reads schema 2."),
        ('{"schema": 2}', "missing required field `by_size`"),
        ('{"schema": 2, "by_size": {"1": "x"}}', "got `str` - at `$.by_size[...]`"),
        ('{"schema": 2, "by_size": {"1": true}}', "got `bool`"),
        ('{"schema": 2, "by_size": {"1": 1e25}}', "no figure is as large as $.by_size.1"),
        ('{"schema": 2, "by_size": {"1": %s}}' % 10**400, "is not a record of moe-eval perf"),
    ],
)
def test_what_is_no_record_is_refused_with_the_path_of_what_does_not_fit(
    tmp_path: Path, content: str, reason: str
) -> None:
    file = tmp_path / "x.json"
    file.write_text(content)
    with pytest.raises(UsageError) as refused:
        read(file)
    assert str(file) in str(refused.value)
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_a_gpu_reaches_is_not_too_large(tmp_path: Path) -> None:
    """Operations in a second, and in a prefill of many sequences."""
    file = tmp_path / "x.json"
    disk.write_record(file, Figure({1: 1.98e15, 2: 1e18}))
    assert read(file).by_size == {1: 1.98e15, 2: 1e18}


def test_json_is_written_as_utf8_text_that_others_may_read(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    disk.write_json(file, {"a": "é", "unknown to JSON": Path("b")}, default=str)
    assert file.read_text(encoding="utf-8") == '{\n "a": "é",\n "unknown to JSON": "b"\n}\n'
    assert file.stat().st_mode & 0o777 == 0o644


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
        patch.setattr(os, step, full)
        with pytest.raises(OSError, match="No space left"):
            disk.write_json(file, {"new": 2})
    assert json.loads(file.read_text()) == {"old": 1}
    assert list(tmp_path.iterdir()) == [file]


def test_the_file_is_whole_at_the_moment_it_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moves = []
    move = os.replace

    def watching(source: str, target: Path) -> None:
        moves.append((Path(source).parent, json.loads(Path(source).read_text()), target.exists()))
        move(source, target)

    monkeypatch.setattr(os, "replace", watching)
    disk.write_json(tmp_path / "x.json", {"a": 1})
    assert moves == [(tmp_path, {"a": 1}, False)]


SECRETS = "hf_token token api_key OPENAI_API_KEY apikey aws_access_key password db_passwd client_secret credential"


@pytest.mark.parametrize("name", SECRETS.split())
def test_secrets_are_removed_at_any_depth(name: str) -> None:
    content = {name: "hunter2", "deep": [{"deeper": ({name: "hunter2"},)}]}
    assert disk.redact(content) == {name: "[redacted]", "deep": [{"deeper": [{name: "[redacted]"}]}]}


@pytest.mark.parametrize("value", [271828, ["271828"], {"value": "271828"}], ids=["number", "list", "mapping"])
def test_secrets_are_removed_whatever_their_type(value: Any) -> None:
    """The harness turns password=271828 of --model_args into a number."""
    assert "271828" not in repr(disk.redact({"password": value}))


def test_what_only_sounds_like_a_secret_is_kept() -> None:
    names = "max_gen_toks max_tokens max_tokens_per_batch tokenizer tokenizer_backend prefix_token_id eot_token_id"
    plain = {**dict.fromkeys([*names.split(), "add_bos_token", "pretrained"], "a/b"), "max_tokens": 256, "token": None}
    assert disk.redact(plain) == plain
    assert disk.redact({"deep": [plain]}) == {"deep": [plain]}


def test_redaction_changes_nothing_but_a_copy() -> None:
    content = {"hf_token": "x", "list": [1, ({"password": "y"},)], 3: None}
    assert disk.redact(content) == {"hf_token": "[redacted]", "list": [1, [{"password": "[redacted]"}]], 3: None}
    assert content == {"hf_token": "x", "list": [1, ({"password": "y"},)], 3: None}


def test_user_and_password_of_an_address_never_reach_the_disk(tmp_path: Path) -> None:
    content = {
        "a": "https://user:hunter2@example.org/x?y=1",
        "b": ["mlflow at postgresql://hunter2@db/x failed"],
        "https://u:hunter2@key.org": 1,
        "mail": "someone@example.org",
        "plain": "https://example.org/@x",
    }
    disk.write_json(tmp_path / "x.json", content)
    text = (tmp_path / "x.json").read_text()
    assert "hunter2" not in text
    written = json.loads(text)
    assert written["a"] == "https://[redacted]@example.org/x?y=1"
    assert (written["mail"], written["plain"]) == (content["mail"], content["plain"])
