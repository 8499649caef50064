"""Opening trace files: what they are by their content, reading within bounds, and one sentence for every bad one."""

from __future__ import annotations

import gzip
import json
import os
import random
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from moe_eval.errors import UsageError
from moe_eval.traces.readers import files, sources
from tests.doubles import chrome_trace
from tests.doubles.chrome_trace import kernel, row_tuples, save

TRACE_HEADER = (
    "Start (ns),Duration (ns),CorrId,GrdX,GrdY,GrdZ,BlkX,BlkY,BlkZ,Reg/Trd,StcSMem (MB),DymSMem (MB),Bytes (MB),"
    "Throughput (MB/s),SrcMemKd,DstMemKd,Device,Ctx,GreenCtx,Strm,Name"
)
CONTENT = {
    "object": (b'{"traceEvents": []}', "torch profiler"),
    "array after spaces": (b"\n\t [ ]", "torch profiler"),
    "array after a byte order mark": (b"\xef\xbb\xbf[]", "torch profiler"),
    "gzip": (gzip.compress(b"[]"), "torch profiler"),
    "sqlite": (b"SQLite format 3\0" + bytes(84), "nsys sqlite"),
    "gpu trace": (f"{TRACE_HEADER}\n1,2,3\n".encode(), "nsys csv"),
    "summary": (b"Time (%),Total Time (ns),Instances,Avg (ns),Name\r\n99,1,1,1,k\r\n", "nsys csv"),
    "summary of 2021": (b"Time(%),Total Time (ns),Instances,Average,Minimum,Maximum,Name\n", "nsys csv"),
    "quoted": (b'\xef\xbb\xbf"Start (ns)","Duration (ns)","Name"\n', "nsys csv"),
    "notices first": (
        f"\nNOTICE: Existing SQLite export found: a.sqlite\nProcessing [a.sqlite]...\n{TRACE_HEADER}\n".encode(),
        "nsys csv",
    ),
}


@pytest.mark.parametrize("name", CONTENT)
@pytest.mark.parametrize("suffix", [".json", ".csv", ".sqlite", ".bin", ".gz"])
def test_content_decides_and_no_suffix(tmp_path: Path, name: str, suffix: str) -> None:
    content, kind = CONTENT[name]
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    assert sources.kind(path) == kind


def test_a_report_is_known_by_its_suffix(tmp_path: Path) -> None:
    path = tmp_path / "a.nsys-rep"
    path.write_bytes(b"\x8c\x01whatever")
    assert sources.kind(path) == "nsys report"


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.json.zst", b"\x28\xb5\x2f\xfd\0\0", r"zstd -d"),
        ("a.zip", b"PK\x03\x04\0\0", "zip archive"),
        ("a.json.xz", b"\xfd7zXZ\0\0", "xz -d"),
        ("a.json.bz2", b"BZh91AY", "bzip2 -d"),
        ("a.pftrace", b"\n\x0a\x08\0", "Perfetto"),
        ("a.txt", b"hello, Name\n", "no trace that is known"),
        ("a.bin", bytes(1000), "no trace that is known"),
        ("a.json", b"", "is empty"),
    ],
)
def test_other_files_get_a_sentence_that_lists_what_is_read(
    tmp_path: Path, name: str, content: bytes, sentence: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UsageError, match=sentence) as error:
        files.read(path)
    assert name in str(error.value)
    assert not content or all(each in str(error.value) for each in (".nsys-rep", ".sqlite", "CSV", ".json.gz"))


def test_bytes_come_back_whole_packed_or_not(tmp_path: Path) -> None:
    content = random.Random(1).randbytes(9 << 20)
    for name, stored in (
        ("a", content),
        ("b", gzip.compress(content, 1)),
        ("c", gzip.compress(content[:5000], 1) + gzip.compress(content[5000:], 1)),
        ("d", gzip.compress(content, 1) + bytes(512)),  # padding, as tapes have it
    ):
        (tmp_path / name).write_bytes(stored)
        assert sources.read_bytes(tmp_path / name) == content


def damaged() -> dict[str, tuple[bytes, str]]:
    packed = gzip.compress(random.Random(1).randbytes(100_000).hex().encode())
    middle = bytearray(packed)
    middle[5000:5100] = bytes(100)
    return {
        "cut off": (packed[:-2000], "cut off"),
        "without its checksum": (packed[:-6], "cut off"),
        "header only": (packed[:4], "cut off"),
        "wrong checksum": (packed[:-8] + bytes(4) + packed[-4:], "damaged"),
        "damaged": (bytes(middle), "damaged"),
        "rubbish behind": (packed + b"rubbish", "damaged"),
        "unknown block": (packed[:10] + b"\xff" + packed[11:], "damaged"),
        "unknown method": (b"\x1f\x8b\x01" + packed[3:], "damaged"),
    }


@pytest.mark.parametrize("name", damaged())
def test_damaged_gzip_gets_one_sentence(tmp_path: Path, name: str) -> None:
    content, sentence = damaged()[name]
    path = tmp_path / "a.json.gz"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=rf"a\.json\.gz.*{sentence}"):
        files.read(path)


@pytest.mark.parametrize("packed", [True, False])
def test_nothing_is_read_beyond_the_limit(tmp_path: Path, packed: bool) -> None:
    content = random.Random(1).randbytes(3 << 20)
    path = tmp_path / "a"
    path.write_bytes(gzip.compress(content, 1) if packed else content)
    assert sources.read_bytes(path, limit=len(content)) == content
    with pytest.raises(UsageError, match="holds more than 2 MiB"):
        sources.read_bytes(path, limit=len(content) - 1)


def test_what_shrinks_far_more_than_a_trace_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.json.gz"
    with gzip.open(path, "wb", compresslevel=6) as file:
        for _ in range(160):
            file.write(b" " * (1 << 20))
    with pytest.raises(UsageError, match="unpacks to more than 200 times its size"):
        files.read(path)


def test_a_small_file_may_shrink_as_much_as_it_likes(tmp_path: Path) -> None:
    path = tmp_path / "a.json.gz"
    path.write_bytes(gzip.compress(b"[" + b" " * (4 << 20) + json.dumps(kernel("k")).encode() + b"]"))
    assert files.read(path).kernels.names == ("k",)


def test_a_trace_shrinks_far_less_than_that(tmp_path: Path) -> None:
    chrome_trace.write(tmp_path / "a.json.gz", steps=20, layers=8)
    assert len(sources.read_bytes(tmp_path / "a.json.gz")) < 100 * (tmp_path / "a.json.gz").stat().st_size


def test_a_folder_a_pipe_and_a_missing_file_get_one_sentence(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, sentence in ((tmp_path, "is a folder"), (pipe, "is a pipe"), (tmp_path / "no", "does not exist")):
        with pytest.raises(UsageError, match=sentence):
            files.read(path)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [(PermissionError(13, "Permission denied"), "may not be read"), (OSError(5, "Input/output error"), "Input/output")],
)
def test_a_file_that_the_system_refuses_gets_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, sentence: str
) -> None:
    path = save(tmp_path / "a.json", [kernel()])

    def refuse(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(UsageError, match=rf"a\.json.*{sentence}"):
            files.read(path)


def test_a_trace_of_torch_is_read_whatever_its_name(tmp_path: Path) -> None:
    path = save(tmp_path / "a.sqlite", [kernel("k")])
    assert row_tuples(files.read(path)) == row_tuples(files.read(save(tmp_path / "b.json", [kernel("k")])))
    path.write_bytes(gzip.compress(json.dumps([kernel("packed")]).encode()))
    assert files.read(path).kernels.names == ("packed",)
    operator = {**kernel("op"), "cat": "cpu_op"}
    assert files.read(save(path, [operator]), cpu=True).kernels.names == ("op",)


def test_nsight_systems_has_no_operators_of_the_cpu(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE StringIds (id INTEGER, value TEXT)")
    database.close()
    with pytest.raises(UsageError, match="has no operators of the CPU"):
        files.read(path, cpu=True)
