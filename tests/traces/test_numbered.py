"""A trace for others has no process ids, and its breakdown is that of the trace itself."""

from __future__ import annotations

import gzip
import json
import sqlite3
from pathlib import Path

import pytest

from moe_eval.errors import UsageError
from moe_eval.evaluators import kernels_record
from moe_eval.records.kernels import KernelsRecord
from moe_eval.traces import numbered
from moe_eval.traces.readers import files
from tests.doubles import chrome_trace, nsys_database


def record(trace: Path) -> KernelsRecord:
    return kernels_record.make("t", files.read(trace), None)


def test_an_export_of_nsight_systems(tmp_path: Path) -> None:
    source, plain = tmp_path / "source.sqlite", tmp_path / "plain.sqlite"
    nsys_database.write(source)
    shared = numbered.write(source, tmp_path, "trace_b1")
    before, after = record(source), record(shared)
    assert before == after
    plain.write_bytes(gzip.decompress(shared.read_bytes()))
    with sqlite3.connect(plain) as database:
        pids = database.execute("SELECT DISTINCT globalPid >> 24 & 0xFFFFFF FROM CUPTI_ACTIVITY_KIND_KERNEL").fetchall()
        tids = database.execute("SELECT DISTINCT globalTid & 0xFFFFFF FROM CUPTI_ACTIVITY_KIND_RUNTIME").fetchall()
    assert (sorted(pids), sorted(tids)) == ([(0,), (1,)], [(1,), (2,)])
    first = shared.read_bytes()
    assert numbered.write(source, tmp_path, "trace_b1").read_bytes() == first


def test_a_chrome_trace(tmp_path: Path) -> None:
    source = tmp_path / "source.json"
    chrome_trace.write(source)
    shared = numbered.write(source, tmp_path, "trace_b1")
    assert record(source) == record(shared)
    document = json.loads(gzip.decompress(shared.read_bytes()))
    numbers = {event[name] for event in document["traceEvents"] for name in ("pid", "tid") if name in event}
    assert chrome_trace.HOST[0] not in numbers
    assert max(numbers) < 10


def test_ids_with_labels_stay_apart(tmp_path: Path) -> None:
    source = chrome_trace.save(tmp_path / "merged.json", chrome_trace.merged())
    shared = numbered.write(source, tmp_path, "trace_b1")
    assert record(source) == record(shared)


@pytest.mark.parametrize("identifier", [1.5, [1], {"a": 1}, True])
def test_an_id_that_is_none_is_told(tmp_path: Path, identifier: object) -> None:
    source = tmp_path / "source.json"
    chrome_trace.write(source)
    document = json.loads(source.read_bytes())
    for event in document["traceEvents"]:
        event["tid"] = identifier
    source.write_text(json.dumps(document))
    with pytest.raises(UsageError, match=r"^\S+source.json .*\."):
        numbered.write(source, tmp_path, "trace_b1")
    assert not (tmp_path / "trace_b1.json.gz").exists()
