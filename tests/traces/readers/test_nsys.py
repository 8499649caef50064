"""The reader of Nsight Systems' databases, against plain SQL on the same files."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_eval.records.kernels import TraceSource
from moe_eval.traces.kernel_table import COPY, KERNEL, NONE, SET
from moe_eval.traces.readers import nsys
from tests.conftest import ROOT
from tests.doubles import nsys_database
from tests.doubles.sql import ask, change
from tests.traces.readers.conftest import assert_same

SHARED = ROOT.parent / "shared" / "data" / "nsys"
TABLES = {
    KERNEL: "CUPTI_ACTIVITY_KIND_KERNEL",
    COPY: "CUPTI_ACTIVITY_KIND_MEMCPY",
    SET: "CUPTI_ACTIVITY_KIND_MEMSET",
}
JOIN = """SELECT k.start, k.deviceId, k.streamId, r.start, r.globalTid FROM {} k LEFT JOIN CUPTI_ACTIVITY_KIND_RUNTIME r
    ON r.correlationId = k.correlationId AND r.globalTid / 0x1000000 = k.globalPid / 0x1000000"""
GENERATED: dict[str, dict[str, Any]] = {
    "graph": {},
    "2022": {"schema": "2022"},
    "eager": {"graph": False},
    "no ranges": {"nvtx": False},
    "one rank": {"ranks": 1, "before": 0},
}


@pytest.fixture(params=[*GENERATED, "h100_2gpu_1s", "mock"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    name: str = request.param
    if name in GENERATED:
        nsys_database.write(tmp_path / "made.sqlite", **GENERATED[name])
        return tmp_path / "made.sqlite"
    if not (SHARED / f"{name}.sqlite").is_file():
        pytest.skip(f"shared data absent: the real export {name}.sqlite is not beside the checkout")
    return SHARED / f"{name}.sqlite"


def has(path: Path, table: str) -> bool:
    return bool(ask(path, f"SELECT 1 FROM sqlite_master WHERE name = '{table}'"))


def test_rows_times_and_launches_are_those_of_plain_sql(database: Path) -> None:
    trace = nsys.read(database)
    for kind, table in TABLES.items():
        rows = trace.kernels.take(trace.kernels.kind == kind)
        if not has(database, table):
            assert not len(rows)
            continue
        assert [(len(rows), rows.duration_ns.sum())] == ask(database, f"SELECT count(*), sum(end - start) FROM {table}")
        columns = (rows.start_ns, rows.device, rows.stream, rows.launch_ns, rows.launch_thread)
        joined = [tuple(NONE if each is None else each for each in row) for row in ask(database, JOIN.format(table))]
        assert Counter(zip(*(each.tolist() for each in columns), strict=True)) == Counter(joined)


def test_names_are_those_of_plain_sql(database: Path) -> None:
    kernels = nsys.read(database).kernels
    found = Counter(zip([kernels.names[each] for each in kernels.name], kernels.start_ns.tolist(), strict=True))
    sql = "SELECT value, start FROM {} JOIN StringIds ON id = {}"
    expected = Counter(ask(database, sql.format(TABLES[KERNEL], "demangledName")))
    words = {1: "Host-to-Device", 2: "Device-to-Host", 8: "Device-to-Device"}
    if has(database, TABLES[COPY]):
        for kind, start in ask(database, f"SELECT copyKind, start FROM {TABLES[COPY]}"):
            expected[f"[CUDA memcpy {words[kind]}]", start] += 1
    if has(database, TABLES[SET]):
        expected.update(("[CUDA memset]", start) for (start,) in ask(database, f"SELECT start FROM {TABLES[SET]}"))
    assert found == expected
    assert len(set(kernels.names)) == len(kernels.names)


def test_ranges_are_those_of_plain_sql(database: Path) -> None:
    trace = nsys.read(database)
    ranges = trace.ranges
    columns = (ranges.start_ns.tolist(), ranges.end_ns.tolist(), ranges.thread.tolist())
    found = Counter(zip([ranges.names[each] for each in ranges.name], *columns, strict=True))
    if has(database, "NVTX_EVENTS"):
        sql = """SELECT COALESCE(text, value), start, end, globalTid FROM NVTX_EVENTS LEFT JOIN StringIds ON id = textId
            WHERE eventType IN (59, 60, 70) AND end IS NOT NULL"""
        assert found == Counter(ask(database, sql))
        assert len(ranges) > 0
    else:
        assert not found
        assert "The recording has no NVTX ranges." in trace.notes


def test_a_replayed_kernel_leads_to_where_its_node_was_captured(made: Path) -> None:
    sql = """SELECT k.start, k.deviceId, COALESCE(o.start, -1), COALESCE(o.globalTid, -1), k.graphNodeId IS NOT NULL
        FROM CUPTI_ACTIVITY_KIND_KERNEL k
        LEFT JOIN CUDA_GRAPH_NODE_EVENTS c
            ON c.graphNodeId = k.graphNodeId AND c.globalTid / 0x1000000 = k.globalPid / 0x1000000
        LEFT JOIN CUDA_GRAPH_NODE_EVENTS b ON b.graphNodeId = c.originalGraphNodeId AND b.globalTid = c.globalTid
        LEFT JOIN CUDA_GRAPH_NODE_EVENTS o ON o.graphNodeId = b.originalGraphNodeId AND o.globalTid = b.globalTid"""
    kernels = nsys.read(made).kernels
    kernels = kernels.take(kernels.kind == KERNEL)
    columns = (kernels.start_ns, kernels.device, kernels.captured_ns, kernels.captured_thread, kernels.replayed)
    assert Counter(zip(*(each.tolist() for each in columns), strict=True)) == Counter(ask(made, sql))
    assert np.count_nonzero(kernels.replayed) == 2 * 6 * 3 * 14
    assert np.all(kernels.captured_ns[kernels.replayed] != NONE)


def test_a_captured_kernel_lies_in_the_range_of_its_layer(made: Path) -> None:
    trace = nsys.read(made)
    kernels, ranges = trace.kernels, trace.ranges
    gates = {name for name in kernels.names if "1x1_v_bz_TNN" in name}
    rows = [at for at in np.flatnonzero(kernels.replayed) if kernels.names[kernels.name[at]] in gates]
    layers = []
    for at in rows:
        inside = (ranges.start_ns <= kernels.captured_ns[at]) & (ranges.end_ns > kernels.captured_ns[at])
        texts = [ranges.names[each] for each in ranges.name[inside & (ranges.thread == kernels.captured_thread[at])]]
        assert len(texts) == 3
        layers.append(texts[-1].split("'")[3].removeprefix("Qwen3MoeForCausalLM.model.layers."))
    assert Counter(layers) == {f"{layer}.mlp.gate": 2 * 6 for layer in range(3)}


def test_a_launch_of_a_graph_tells_replayed_kernels_where_nodes_have_no_numbers(made: Path) -> None:
    before = nsys.read(made).kernels
    change(made, "UPDATE CUPTI_ACTIVITY_KIND_KERNEL SET graphNodeId = NULL", "DROP TABLE CUDA_GRAPH_NODE_EVENTS")
    after = nsys.read(made).kernels
    assert np.array_equal(after.replayed, before.replayed)
    assert np.all(after.graph_node == NONE)
    assert np.all(after.captured_ns == NONE)


def test_clones_in_a_circle_and_rows_of_a_node_as_it_is_made_do_not_mislead(made: Path) -> None:
    before = nsys.read(made).kernels
    node, clone = 3 * nsys_database.GRAPH, 2 * nsys_database.GRAPH
    change(
        made,
        # of a clone there may also be a row that says when it was made
        "INSERT INTO CUDA_GRAPH_NODE_EVENTS SELECT 1, 2, 0, globalTid, nameId, graphNodeId, NULL "
        f"FROM CUDA_GRAPH_NODE_EVENTS WHERE graphNodeId >= {node}",
        f"UPDATE CUDA_GRAPH_NODE_EVENTS SET originalGraphNodeId = {node} WHERE graphNodeId = {clone}",
    )
    after = nsys.read(made)
    circle = after.kernels.graph_node == node
    assert np.count_nonzero(circle) == 12
    assert np.all(after.kernels.captured_ns[circle] == NONE)
    assert np.array_equal(after.kernels.captured_ns[~circle], before.captured_ns[~circle])
    assert "The capture of 12 of 504 kernels, copies and sets of CUDA graphs is not in the recording." in after.notes


def test_the_order_of_rows_and_the_size_of_parts_do_not_matter(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = nsys.read(made)
    for table in [*TABLES.values(), "CUPTI_ACTIVITY_KIND_RUNTIME", "NVTX_EVENTS", "CUDA_GRAPH_NODE_EVENTS"]:
        names = ", ".join(f'"{row[1]}"' for row in ask(made, f"PRAGMA table_info({table})"))
        change(
            made,
            f"CREATE TABLE shuffled AS SELECT * FROM {table} ORDER BY (rowid * 7919) % 1009",
            f"DELETE FROM {table}",
            f"INSERT INTO {table} (rowid, {names}) SELECT rowid - 40, {names} FROM shuffled",
            "DROP TABLE shuffled",
        )
    monkeypatch.setattr(nsys.columns.sqlite_pages, "_BLOCK", 1)
    assert_same(nsys.read(made), before)
    monkeypatch.setattr(nsys.columns.sqlite_pages, "columns", lambda *_: None)
    monkeypatch.setattr(nsys.columns, "_BATCH", 7)
    assert_same(nsys.read(made), before)


def test_the_real_export_leaves_what_was_launched_before_it_unattributed() -> None:
    path = SHARED / "h100_2gpu_1s.sqlite"
    if not path.is_file():
        pytest.skip("shared data absent: the real export h100_2gpu_1s.sqlite is not beside the checkout")
    kernels = nsys.read(path).kernels
    kernels = kernels.take(kernels.kind == KERNEL)
    assert len(kernels) == 3442
    assert np.count_nonzero(kernels.launch_ns == NONE) == 1810
    assert np.count_nonzero(kernels.launch_ns != NONE) == 1632
    by_id_alone = (
        "SELECT count(*) FROM CUPTI_ACTIVITY_KIND_KERNEL JOIN CUPTI_ACTIVITY_KIND_RUNTIME USING (correlationId)"
    )
    assert ask(path, by_id_alone) == [(1643,)]  # what a join that forgets the process would find


def test_what_the_source_and_the_notes_say(made: Path) -> None:
    trace = nsys.read(made)
    assert trace.source == TraceSource("nsys sqlite", "2026.2.1.210", ("NVIDIA H200",) * 2)
    assert trace.notes == ("The launches of 10 of 640 kernels, copies and sets are not in the recording.",)
    assert trace.timed
    change(made, "DELETE FROM META_DATA_EXPORT WHERE name = 'EXPORT_PRODUCT_VERSION'", "DROP TABLE TARGET_INFO_GPU")
    assert nsys.read(made).source == TraceSource("nsys sqlite", "3.25.0")


def test_sizes_are_read_in_bytes_and_thread_blocks(made: Path) -> None:
    kernels = nsys.read(made).kernels
    copies = kernels.take(kernels.kind != KERNEL)
    assert set(copies.bytes.tolist()) == {4096}
    assert not copies.blocks.any()
    kernels = kernels.take(kernels.kind == KERNEL)
    (blocks,) = ask(made, "SELECT sum(gridX * gridY * gridZ) FROM CUPTI_ACTIVITY_KIND_KERNEL")
    assert (kernels.blocks.sum(), kernels.bytes.any()) == (*blocks, False)


def test_every_kind_of_copy_has_its_words(made: Path) -> None:
    change(made, "UPDATE CUPTI_ACTIVITY_KIND_MEMCPY SET copyKind = rowid")
    kernels = nsys.read(made).kernels
    names = [kernels.names[each] for each in kernels.name[kernels.kind == COPY]]
    assert {each for each in names if "kind" in each} == {"[CUDA memcpy kind 14]"}
    assert "[CUDA memcpy Peer-to-Peer]" in names
    assert len(set(names)) == 14


def test_an_older_schema_without_optional_columns_and_tables_is_read(made: Path) -> None:
    before = nsys.read(made).kernels
    keep = "start, end, deviceId, streamId, correlationId, globalPid, shortName"
    change(
        made,
        f"CREATE TABLE old AS SELECT {keep} FROM CUPTI_ACTIVITY_KIND_KERNEL",
        "DROP TABLE CUPTI_ACTIVITY_KIND_KERNEL",
        "ALTER TABLE old RENAME TO CUPTI_ACTIVITY_KIND_KERNEL",
        *(f"DROP TABLE {table}" for table in (TABLES[COPY], TABLES[SET], "CUDA_GRAPH_NODE_EVENTS", "NVTX_EVENTS")),
        *(f"DROP TABLE {table}" for table in ("META_DATA_EXPORT", "TARGET_INFO_GPU", "ENUM_NSYS_EVENT_TYPE")),
    )
    after = nsys.read(made)
    before = before.take(before.kind == KERNEL)
    assert np.array_equal(after.kernels.start_ns, before.start_ns)
    assert np.array_equal(after.kernels.launch_ns, before.launch_ns)
    assert np.array_equal(after.kernels.replayed, before.replayed)
    assert {"nvjet_tst_64x8_64x16_4x1_v_bz_TNT", "void fused_moe::run_global"} <= set(after.kernels.names)
    assert after.source.version is None


@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
@pytest.mark.parametrize("name", ["made.sqlite", "a b?#%41&mode=rwc.sqlite"])
def test_the_file_and_its_folder_stay_as_they_are(tmp_path: Path, mode: str, name: str) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    path = folder / name
    nsys_database.write(path)
    change(path, f"PRAGMA journal_mode = {mode}")
    path.chmod(stat.S_IRUSR)
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    state = looks(path)
    trace = nsys.read(path)
    assert looks(path) == state
    folder.chmod(stat.S_IRWXU)
    nsys_database.write(tmp_path / "again.sqlite")
    assert_same(trace, nsys.read(tmp_path / "again.sqlite"))


def looks(path: Path) -> tuple[object, ...]:
    times = [each.stat().st_mtime_ns for each in (path, path.parent)]
    return hashlib.sha256(path.read_bytes()).hexdigest(), *times, sorted(os.listdir(path.parent))
