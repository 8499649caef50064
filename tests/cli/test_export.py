"""`moe-eval export`: a run as one file, and two people's files side by side."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path

import msgspec
import pandas as pd
import pytest

import moe_eval
from moe_eval.cli import main
from moe_eval.records import by_arm
from moe_eval.records.latency import LatencyRecord
from moe_eval.sharing import archive
from moe_eval.traces.readers import files
from tests.doubles import chrome_trace
from tests.doubles import recorded_arms as made

MS = {1: [[100.0, 101.0], [100.0, 99.0]] * 2}
FASTER = {1: [[80.0, 81.0], [80.0, 79.0]] * 2}
SECRETS = ("node17", "janedoe", "GPU-0", "/scratch/jd")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The working folder of somebody on a machine with a name."""
    home = tmp_path / "home" / "janedoe"
    home.mkdir(parents=True)
    monkeypatch.setattr("socket.gethostname", lambda: "node17.lab.example")
    monkeypatch.setattr("getpass.getuser", lambda: "janedoe")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    return home


def measured(folder: Path, ms: dict[int, list[list[float]]], run_id: str = made.RUN) -> Path:
    """A run of one arm whose records tell of the machine."""
    folder.mkdir()
    arm = made.arm("fp8", ms, run_id=run_id, checkpoint="/scratch/jd/Qwen3", output_dir=str(folder))
    content = msgspec.to_builtins(arm.latency)
    content["shapes"][0]["notes"] = ["janedoe saw GPU-0 on node17 (pid 4711)"]
    latency = msgspec.convert(content | {"error": "see /scratch/jd/log.txt"}, LatencyRecord, str_keys=True)
    made.write(
        folder, [by_arm.ArmRecords("fp8", "fp8", latency)], record=made.run(["fp8"], ("latency",), run_id=run_id)
    )
    return folder


def texts(file: Path) -> str:
    with zipfile.ZipFile(file) as archive:
        return "\n".join(archive.read(name).decode("utf-8", "replace") for name in archive.namelist())


def test_a_shared_run_tells_of_nobody(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = measured(machine / "run", MS)
    (run / "arms" / "fp8").mkdir(parents=True)
    chrome_trace.write(run / "raw.json")
    files.keep(run / "raw.json", run / "arms" / "fp8", "trace_b1_i512_o9")
    assert main(["export", "run", "one.zip"]) == 0
    assert "one.zip" in capsys.readouterr().out
    assert main(["export", "run", "two.zip"]) == 0
    assert Path("one.zip").read_bytes() == Path("two.zip").read_bytes()
    shared = texts(Path("one.zip"))
    assert main(["export", "one.zip", "again.zip"]) == 0
    for secret in (*SECRETS, str(machine), "4711"):
        assert secret not in shared, secret
    with zipfile.ZipFile("one.zip") as archive:
        names = archive.namelist()
    assert {"run.json", "perf_fp8_sm90.json", "report.html", "report.md", "comparison.json"} <= set(names)
    assert "traces/fp8/trace_b1_i512_o9.json.gz" in names
    assert "[user] saw gpu0 on [host] (pid [pid])" in shared


def test_two_people_s_files_are_compared(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measured(machine / "jane", MS)
    measured(machine / "otto", FASTER, run_id="f" * 32)
    for name in ("jane", "otto"):
        assert main(["export", name, f"{name}.zip"]) == 0
    assert main(["compare", "jane.zip", "otto.zip", "--output_dir", "out"]) == 0
    assert "fp8@otto" in capsys.readouterr().out
    by_file = moe_eval.compare("jane.zip", "otto.zip").comparison
    by_folder = moe_eval.compare("jane", "otto").comparison
    assert by_file is not None
    assert by_folder is not None
    assert by_file.pairs[0].verdict is by_folder.pairs[0].verdict
    assert by_file.pairs[0].shapes[0].speed == by_folder.pairs[0].shapes[0].speed
    assert main(["compare", "jane", "otto.zip", "--output_dir", "out"]) == 0
    assert main(["compare", "jane", "jane.zip", "--output_dir", "out"]) == 2
    assert "hold the same measurement" in capsys.readouterr().err


def test_quality_is_compared_token_by_token(recorded: Path, tmp_path: Path) -> None:
    assert main(["export", str(recorded), str(tmp_path / "run.zip")]) == 0
    shared, own = moe_eval.read(tmp_path / "run.zip").comparison, moe_eval.read(recorded).comparison
    assert shared is not None
    assert own is not None
    assert shared.pairs[0].quality == own.pairs[0].quality
    assert own.pairs[0].quality is not None
    with zipfile.ZipFile(tmp_path / "run.zip") as packed:
        assert "ppl_fp8_sm90.npz" in packed.namelist()


def test_tables_have_the_columns_of_the_python_interface(recorded: Path, tmp_path: Path) -> None:
    frame = moe_eval.read(recorded).to_dataframe()
    for words in (("a.csv",), ("a.parquet",), ("b", "--to", "csv")):
        assert main(["export", str(recorded), str(tmp_path / words[0]), *words[1:]]) == 0
    read = pd.read_csv(tmp_path / "a.csv", keep_default_na=False, na_values={name: [""] for name in ("low", "high")})
    pd.testing.assert_frame_equal(read, frame)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "a.parquet"), frame, check_dtype=False)
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a.csv").read_bytes()


def test_a_trace_that_tells_stops_the_export(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = measured(machine / "run", MS)
    (run / "arms" / "fp8").mkdir(parents=True)
    chrome_trace.save(run / "raw.json", [chrome_trace.kernel("janedoe_kernel"), chrome_trace.call()])
    files.keep(run / "raw.json", run / "arms" / "fp8", "trace_b1_i512_o9")
    assert main(["export", "run", "out.zip"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "traces/fp8/trace_b1_i512_o9.json.gz would hold the name of a user" in line
    assert not list(machine.glob("*out.zip*"))


def test_damaged_traces_are_named_and_the_rest_is_exported(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = measured(machine / "run", MS) / "arms" / "fp8"
    place.mkdir(parents=True)
    chrome_trace.write(machine / "raw.json")
    content = files.keep(machine / "raw.json", place, "trace_b1_i512_o9").read_bytes()
    damages = (b"", b"no gzip", content[:-200], gzip.compress(b"{}"), gzip.compress(b"SQLite format 3\0"))
    traces = [place / f"trace_b{number}_i512_o9.json.gz" for number in range(2, 2 + len(damages))]
    for trace, damage in zip(traces, damages, strict=True):
        trace.write_bytes(damage)
    assert main(["export", "run", "out.zip", "--json"]) == 0
    captured = capsys.readouterr()
    sentences = [
        f"{trace.relative_to(machine)} is not readable and not exported. Record it again, or move it away."
        for trace in traces
    ]
    assert json.loads(captured.out)["unreadable"] == sentences
    assert captured.err.splitlines()[1:] == sentences
    with zipfile.ZipFile("out.zip") as packed:
        names = packed.namelist()
    assert [name for name in names if name.startswith("traces/")] == ["traces/fp8/trace_b1_i512_o9.json.gz"]
    assert {"run.json", "perf_fp8_sm90.json", "report.html", "comparison.json"} <= set(names)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("run", "out.txt"), "does not end with .zip, .csv or .parquet"),
        (("run", "absent/out.zip"), "is no place for a file"),
        (("run", "run", "--to", "zip"), "is no place for a file"),
        (("../janedoe/empty", "out.zip"), "holds no record"),
        (("run",), "needs FILE"),
    ],
)
def test_refusals(words: tuple[str, ...], sentence: str, machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measured(machine / "run", MS)
    (machine / "empty").mkdir()
    assert main(["export", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert sentence in line
    assert sorted(path.name for path in machine.iterdir()) == ["empty", "run"]


def test_a_damaged_file_is_refused(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (machine / "bad.zip").write_bytes(b"PK")
    assert main(["compare", "bad.zip", "bad.zip"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "bad.zip is damaged, or no .zip" in line


def test_a_record_of_a_stranger_is_read_as_strictly(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = measured(machine / "run", MS)
    (run / "perf_fp8_sm90.json").write_text('{"schema": 2, "arm": [1]}')
    archive.pack(run, machine / "odd.zip")
    assert main(["compare", "odd.zip", "odd.zip"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "perf_fp8_sm90.json is not a record" in line
