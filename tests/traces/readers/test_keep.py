"""Traces kept beside a record: of every kind, without what is private, read as the whole ones."""

from __future__ import annotations

import gzip
import sqlite3
from pathlib import Path

import pytest

from moe_eval.errors import UsageError
from moe_eval.traces import breakdown
from moe_eval.traces.readers import files
from moe_eval.traces.readers.files import keep
from tests.doubles import chrome_trace, nsys_database

SECRET = "hunter2-very-secret"


def test_an_export_is_kept_as_a_database_and_replaces_an_older_one(tmp_path: Path) -> None:
    source, folder = tmp_path / "mine.sqlite", tmp_path / "run"
    folder.mkdir()
    nsys_database.write(source, steps=3, layers=2)
    with sqlite3.connect(source) as database:
        database.execute("INSERT INTO StringIds VALUES (999999, ?)", (SECRET,))
    before = source.read_bytes()
    for _ in range(2):
        copy = keep(source, folder, "trace_b1")
    assert copy == folder / "trace_b1.sqlite"
    assert [each.name for each in folder.iterdir()] == [copy.name]
    assert SECRET.encode() not in copy.read_bytes()
    assert source.read_bytes() == before
    assert breakdown.make(files.read(copy)) == breakdown.make(files.read(source))


def test_a_trace_of_torch_s_profiler_is_kept_packed(tmp_path: Path) -> None:
    source = tmp_path / "mine.json"
    chrome_trace.write(source, steps=3, layers=2)
    copy = keep(source, tmp_path, "trace_b1")
    assert copy == tmp_path / "trace_b1.json.gz"
    assert b"python3" in source.read_bytes()
    assert b"python3" not in gzip.decompress(copy.read_bytes())
    assert breakdown.make(files.read(copy)) == breakdown.make(files.read(source))


def test_a_report_is_kept_as_the_database_that_the_user_s_nsys_makes_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nsys_database.write(tmp_path / "made.sqlite", steps=2, layers=2)
    tool = tmp_path / "bin" / "nsys"
    tool.parent.mkdir()
    tool.write_text(
        '#!/bin/sh\nfor each in "$@"; do case $each in --output=*) out=${each#--output=};; esac; done\n'
        f'cp {tmp_path / "made.sqlite"} "$out"\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=":")
    (tmp_path / "trace_b1.nsys-rep").write_bytes(b"report")
    run = tmp_path / "run"
    run.mkdir()
    copy = keep(tmp_path / "trace_b1.nsys-rep", run, "trace_b1")
    assert [each.name for each in run.iterdir()] == ["trace_b1.sqlite"]
    assert breakdown.make(files.read(copy)) == breakdown.make(files.read(tmp_path / "made.sqlite"))


def test_a_summary_is_not_kept(tmp_path: Path) -> None:
    source = tmp_path / "sum.csv"
    source.write_text("Time (%),Total Time (ns),Instances,Avg (ns),Med (ns),Min (ns),Max (ns),StdDev (ns),Name\n")
    with pytest.raises(UsageError, match="summary"):
        keep(source, tmp_path, "x")
