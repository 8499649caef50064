"""What is read from a checkpoint's files before anything is loaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from moe_eval.checkpoint import contents
from moe_eval.errors import UsageError

TOKENIZER_FILES = """
    tokenizer.json tokenizer_config.json vocab.json merges.txt vocab.txt tokenizer.model chat_template.jinja
""".split()  # noqa: SIM905


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text('{"model_type": "llama", "hidden_size": 8}')
    save_file({"a": np.arange(20.0), "b": np.ones((3, 4))}, checkpoint / "model.safetensors")
    for name in TOKENIZER_FILES:
        (checkpoint / name).write_text(f"content of {name}")
    return checkpoint


def flip(file: Path, at: int) -> None:
    """Change one byte, and neither the size nor the modification time."""
    times = file.stat()
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def refused(act: Callable[[], object]) -> str:
    with pytest.raises(UsageError) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_copy_elsewhere_has_the_same_fingerprint(folder: Path, tmp_path: Path) -> None:
    before = contents.fingerprint(folder)
    copied = Path(shutil.copytree(folder, tmp_path / "elsewhere", copy_function=shutil.copyfile))
    os.utime(copied / "model.safetensors", (1, 1))
    assert contents.fingerprint(copied) == before == contents.fingerprint(folder)
    assert len(before) == 16
    assert int(before, 16) >= 0


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", *TOKENIZER_FILES])
def test_one_byte_of_the_model_or_its_tokenizer_changes_the_fingerprint(folder: Path, name: str) -> None:
    before = contents.fingerprint(folder)
    flip(folder / name, -2)
    assert contents.fingerprint(folder) != before


def test_every_file_and_its_name_count_and_notes_do_not(folder: Path) -> None:
    before = contents.fingerprint(folder)
    (folder / "README.md").write_text("a card")
    (folder / "runs").mkdir()
    assert contents.fingerprint(folder) == before
    fingerprints = {contents.fingerprint(folder)}
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    fingerprints.add(contents.fingerprint(folder))
    (folder / "pytorch_model.bin").write_bytes(b"")
    fingerprints.add(contents.fingerprint(folder))
    (folder / "tokenizer.json").unlink()
    fingerprints.add(contents.fingerprint(folder))
    assert len(fingerprints) == 4


def test_a_large_file_counts_with_its_ends_size_and_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "_WHOLE", 64)
    monkeypatch.setattr(contents, "_ENDS", 10)
    file = folder / "model.safetensors"
    fingerprints = {contents.fingerprint(folder)}
    for at in (0, 9, -10, -1):
        flip(file, at)
        fingerprints.add(contents.fingerprint(folder))
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    fingerprints.add(contents.fingerprint(folder))
    times, content = file.stat(), file.read_bytes()
    file.write_bytes(content[:100] + b"more" + content[100:])
    os.utime(file, ns=(0, times.st_mtime_ns))
    fingerprints.add(contents.fingerprint(folder))
    assert len(fingerprints) == 7


def test_a_folder_with_a_config_is_a_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert contents.local_folder(str(folder)) == folder
    monkeypatch.chdir(folder.parent)
    assert contents.local_folder("checkpoint") == Path("checkpoint")
    assert contents.local_folder("./checkpoint/") == Path("checkpoint")
    monkeypatch.setenv("HOME", str(folder.parent))
    assert contents.local_folder("~/checkpoint") == folder


@pytest.mark.parametrize("name", ["gpt2", "Qwen/Qwen3-30B-A3B", "an-owner/a.name_1"])
def test_other_names_are_left_to_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert contents.local_folder(name) is None


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "../nothing", "~/nothing", "a/b/c", "~nobody-here/x"])
def test_a_path_with_nothing_at_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert f"There is no folder {name}" in refused(lambda: contents.local_folder(name))


def test_a_config_is_read_as_it_stands_and_what_is_no_checkpoint_is_refused(folder: Path) -> None:
    assert contents.read_config(folder) == {"model_type": "llama", "hidden_size": 8}
    assert "is a file" in refused(lambda: contents.local_folder(str(folder / "config.json")))
    (folder / "config.json").unlink()
    assert "holds no config.json" in refused(lambda: contents.local_folder(str(folder)))
    assert "config.json" in refused(lambda: contents.read_config(folder))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"null", b"\xff\xfe"])
def test_a_config_that_is_no_object_is_refused(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    assert str(folder / "config.json") in refused(lambda: contents.read_config(folder))


def test_weight_bytes_are_those_of_the_files_or_of_the_index(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"x" * 100)
    assert contents.weight_bytes(folder) == 100
    (folder / "model.safetensors.index.json").write_text('{"metadata": {"total_size": 6e10}}')
    assert contents.weight_bytes(folder) == 60_000_000_000


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:4],
        lambda content: content[:-1],
        lambda content: content + b"more",
        lambda content: b"\xff" * 8 + content[8:],
        lambda content: content[:8] + b"[" + content[9:],
        lambda content: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    ],
    ids=["empty", "no_header", "cut_short", "too_long", "header_size", "header", "git_lfs_pointer"],
)
def test_the_damaged_file_of_several_is_named(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    contents.check_weights(folder)
    broken = folder / "model-2.safetensors"
    shutil.copyfile(folder / "model.safetensors", folder / "model-1.safetensors")
    broken.write_bytes(damage((folder / "model.safetensors").read_bytes()))
    assert refused(lambda: contents.check_weights(folder)).startswith(f"{broken} is corrupt or cut short")
    for file in folder.glob("*.safetensors"):
        file.unlink()
    contents.check_weights(folder)
