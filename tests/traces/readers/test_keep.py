"""Traces kept beside a record, read as the whole ones, and reports that a stand-in for nsys exports."""

from __future__ import annotations

import gzip
import os
import sqlite3
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from moe_eval.errors import UsageError
from moe_eval.traces import breakdown
from moe_eval.traces.readers import files
from moe_eval.traces.readers.files import keep
from tests.doubles import chrome_trace, nsys_database

SECRET = "hunter2-very-secret"


def test_an_export_is_kept_packed_and_replaces_an_older_one(tmp_path: Path) -> None:
    source, folder = tmp_path / "mine.sqlite", tmp_path / "run"
    folder.mkdir()
    nsys_database.write(source, steps=3, layers=2)
    with sqlite3.connect(source) as database:
        database.execute("INSERT INTO StringIds VALUES (999999, ?)", (SECRET,))
    before = source.read_bytes()
    for _ in range(2):
        copy = keep(source, folder, "trace_b1")
    assert copy == folder / "trace_b1.sqlite.gz"
    assert [each.name for each in folder.iterdir()] == [copy.name]
    assert SECRET.encode() not in gzip.decompress(copy.read_bytes())
    assert b"trace_b1" not in copy.read_bytes(), "no name in the header"
    assert source.read_bytes() == before
    again = keep(copy, tmp_path, "again")
    assert again.read_bytes() == copy.read_bytes(), "what is kept can be kept again"
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
    assert [each.name for each in run.iterdir()] == ["trace_b1.sqlite.gz"]
    assert breakdown.make(files.read(copy)) == breakdown.make(files.read(tmp_path / "made.sqlite"))


def test_a_summary_is_not_kept(tmp_path: Path) -> None:
    source = tmp_path / "sum.csv"
    source.write_text("Time (%),Total Time (ns),Instances,Avg (ns),Med (ns),Min (ns),Max (ns),StdDev (ns),Name\n")
    with pytest.raises(UsageError, match="summary"):
        keep(source, tmp_path, "x")


FAKE = """#!{python}
import pathlib, sys
options = dict(each[2:].split("=", 1) for each in sys.argv[2:-1])
assert sys.argv[1] == "export" and options["type"] == "sqlite" and options["force-overwrite"] == "true"
assert all(pathlib.Path(each).is_absolute() for each in (options["output"], sys.argv[-1]))
report = pathlib.Path(sys.argv[-1]).read_text()
if report == "old":
    print("Exporting 1%\\rImporter error\\n\\nThe report was made by a later version.\\n", file=sys.stderr)
    sys.exit(1)
if report != "silent":
    pathlib.Path(options["output"]).write_text("database of " + report)
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for databases beside one with reports, and an nsys on PATH."""
    programs = tmp_path / "bin"
    programs.mkdir()
    program = programs / "nsys"
    program.write_text(FAKE.format(python=sys.executable))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(programs))
    (tmp_path / "theirs").mkdir()
    (tmp_path / "ours").mkdir()
    return tmp_path


@pytest.mark.parametrize("name", ["run.nsys-rep", "a b %q{HOME}.nsys-rep", "-x.qdrep"])
def test_a_report_is_exported_beside_nothing_of_the_user_s(
    fake: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(fake / "theirs")
    Path(name).write_text("mine")
    database = files.to_sqlite(Path(name), fake / "ours")
    assert database.read_text() == "database of mine"
    assert database.parent == fake / "ours"
    assert database.suffix == ".sqlite"
    assert "%" not in database.name
    assert os.listdir(fake / "theirs") == [name]


@pytest.mark.parametrize(
    ("content", "says"), [("old", r"\(The report was made by a later version\)"), ("silent", r"\(exit code 0\)")]
)
def test_an_nsys_that_fails_is_quoted(fake: Path, content: str, says: str) -> None:
    (fake / "theirs" / "run.nsys-rep").write_text(content)
    with pytest.raises(UsageError, match=says) as error:
        files.to_sqlite(fake / "theirs" / "run.nsys-rep", fake / "ours")
    assert "run.nsys-rep" in str(error.value)
    assert "\n" not in str(error.value)


def test_an_nsys_that_does_not_end_is_ended(fake: Path) -> None:
    report = fake / "theirs" / "run.nsys-rep"
    report.write_text("mine")
    (fake / "bin" / "nsys").write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    with pytest.raises(UsageError, match=r"could not read .*\(no end within 0\.2 s\)"):
        files.to_sqlite(report, fake / "ours", 0.2)


@pytest.mark.parametrize("damage", [lambda whole: whole[:40], lambda whole: whole[:-9], lambda _: b"\x1f\x8b"])
def test_a_damaged_packed_export_is_a_sentence(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    nsys_database.write(tmp_path / "mine.sqlite", steps=2, layers=2)
    copy = keep(tmp_path / "mine.sqlite", tmp_path, "trace_b1")
    copy.write_bytes(damage(copy.read_bytes()))
    with pytest.raises(UsageError, match="Copy or record it again"):
        files.read(copy)


def test_without_nsys_the_sentence_says_where_to_export(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = fake / "theirs" / "run.nsys-rep"
    report.write_text("mine")
    monkeypatch.setenv("PATH", str(fake / "ours"))
    with pytest.raises(UsageError, match=r"nsys export --type sqlite run\.nsys-rep where the report was made"):
        files.to_sqlite(report, fake / "ours")


def test_neither_an_absent_report_nor_the_report_s_own_folder_is_taken(fake: Path) -> None:
    report = fake / "theirs" / "run.nsys-rep"
    with pytest.raises(UsageError, match="There is no file"):
        files.to_sqlite(report, fake / "ours")
    report.write_text("mine")
    with pytest.raises(UsageError, match="another folder"):
        files.to_sqlite(report, fake / "theirs")
    assert os.listdir(fake / "theirs") == ["run.nsys-rep"]
