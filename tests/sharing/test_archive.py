"""Archives of strangers: what is no file of `moe-eval export` ends in one sentence, and nothing is written outside."""

from __future__ import annotations

import io
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from moe_eval.errors import UsageError
from moe_eval.sharing import archive

RECORD = "perf_fp8_sm90.json"


def zipped(file: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as out:
        for name, content in members:
            out.writestr(name, content, zipfile.ZIP_DEFLATED)
    return file


def arrays(size: int) -> bytes:
    out = io.BytesIO()
    np.savez_compressed(out, logprobs=np.zeros(size, np.uint8))
    return out.getvalue()


def link(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.create_system, entry.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return entry


def encrypted(file: Path) -> None:
    zipped(file, (RECORD, b"{}"))
    content = bytearray(file.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + flags] |= 1
    file.write_bytes(content)


def damaged(file: Path) -> None:
    content = bytearray(zipped(file, (RECORD, bytes(range(256)) * 40)).read_bytes())
    content[60:80] = b"\xff" * 20
    file.write_bytes(content)


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no zip": (lambda file: file.write_bytes(b"{}"), "no .zip"),
    "empty": (lambda file: file.write_bytes(b""), "no .zip"),
    "cut": (lambda file: file.write_bytes(zipped(file, (RECORD, b"{}")).read_bytes()[:-30]), "no .zip"),
    "damaged": (damaged, "damaged"),
    "encrypted": (encrypted, "is encrypted"),
    "above": (lambda file: zipped(file, (f"../{RECORD}", b"{}")), "outside of its folder"),
    "absolute": (lambda file: zipped(file, (f"/tmp/{RECORD}", b"{}")), "outside of its folder"),
    "drive": (lambda file: zipped(file, (f"C:/{RECORD}", b"{}")), "outside of its folder"),
    "backslashes": (lambda file: zipped(file, (f"..\\{RECORD}", b"{}")), "outside of its folder"),
    "link": (lambda file: zipped(file, (link(RECORD), b"/etc/passwd")), "a link"),
    "bomb": (lambda file: zipped(file, (RECORD, bytes(32 << 20))), "grows more than"),
    "bomb in arrays": (lambda file: zipped(file, ("ppl_fp8_cpu.npz", arrays(32 << 20))), "grows more than"),
    "many": (lambda file: zipped(file, *((f"{at}.json", b"") for at in range(2_001))), "more than 2,000 files"),
    "nothing": (lambda file: zipped(file, ("readme.txt", b"hello")), "holds no records"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archives(case: str, tmp_path: Path) -> None:
    make, sentence = HOSTILE[case]
    file, folder = tmp_path / "in" / "out.zip", tmp_path / "in" / "folder"
    folder.mkdir(parents=True)
    make(file)
    with pytest.raises(UsageError, match=sentence) as caught:
        archive.unpack(file, folder)
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.rglob("*")} <= {"in", "out.zip", "folder", "ppl_fp8_cpu.npz"}


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_files_of_one_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="two files of one name"):
        archive.unpack(zipped(tmp_path / "out.zip", (RECORD, b"{}"), (RECORD, b"[]")), tmp_path)


def test_files_come_back_as_they_were_and_others_stay(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "traces").mkdir(parents=True)
    target.mkdir()
    records = {f"{kind}_fp8_sm90.json": b"[]" for kind in ("ppl", "kernels", "tasks", "serving")}
    records |= {RECORD: b'{"a": 1}', "run.json": b"{}"}
    content = {**records, "report.html": b"<p>", "traces/t.json.gz": b"x"}
    for name, text in content.items():
        (source / name).write_bytes(text)
    archive.pack(source, tmp_path / "one.zip")
    (source / RECORD).touch()
    archive.pack(source, tmp_path / "two.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.zip") as packed:
        assert {name: packed.read(name) for name in packed.namelist()} == content
    archive.unpack(tmp_path / "one.zip", target)
    assert {file.name: file.read_bytes() for file in target.iterdir()} == records


def test_a_disk_that_is_full_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / RECORD).write_bytes(b"{}")
    (tmp_path / "out.zip").write_bytes(b"before")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
    with pytest.raises(OSError, match="No space left"):
        archive.pack(tmp_path / "source", tmp_path / "out.zip")
    assert (tmp_path / "out.zip").read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.zip", "source"]
