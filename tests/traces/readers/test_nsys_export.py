"""Reports of Nsight Systems, with a stand-in for nsys on PATH."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from moe_eval.errors import UsageError
from moe_eval.traces.readers import files

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
