"""Runs of run, perf and ppl in MLflow, by their records and the comparison beside them."""

from __future__ import annotations

import gzip
import math
import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow
import pytest

from moe_eval import tracking
from moe_eval.comparison import pairs
from moe_eval.errors import UsageError
from moe_eval.records import by_arm, disk
from moe_eval.records.labels import Status
from moe_eval.records.quality import QualityRecord
from moe_eval.records.run import UNMEASURED
from moe_eval.records.verdicts import Verdict
from moe_eval.report.pair_tables import ratio_of
from moe_eval.traces.readers import files
from moe_eval.tracking import fetch, keys, plan_run
from moe_eval.tracking.run_files import RunFiles
from tests.doubles import chrome_trace, recorded_arms
from tests.doubles.harness_runs import RECORD, arm_of, runs
from tests.doubles.recorded_arms import GPU, latency, quality, scores

SHAPE = "b1_i512_o257"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What perf and ppl leave in one folder."""
    folder = tmp_path / "out"
    folder.mkdir()
    arms = [recorded_arms.arm("bf16", {1: [[100.0, 101.0]] * 3}), recorded_arms.arm("fp8", {1: [[50.0, 51.0]] * 3})]
    scored = []
    for arm, worse in zip(arms, (0.0, 0.01), strict=True):
        of = scores(worse)
        of.save(folder / f"ppl_{arm.name}_sm90.npz")
        scored.append(replace(arm, quality=quality(arm.name, of, run_id="a" * 32)))
    recorded_arms.write(folder, scored)
    for command, evaluator, run_id in (("perf", "latency", recorded_arms.RUN), ("ppl", "quality", "a" * 32)):
        record = recorded_arms.run(["bf16", "fp8"], (evaluator,), run_id=run_id, command=command)  # type: ignore[arg-type]
        disk.write_record(folder / f"{command}_run.json", record)
        disk.write_record(folder / f"{command}_comparison.json", pairs.compare(by_arm.read(folder)))
        (folder / f"{command}_report.png").write_bytes(b"picture")
    return folder


def metrics(experiment: str = "moe_eval") -> dict[tuple[str, str], dict[str, float]]:
    """Of every arm by the command of its run."""
    entries = {run.info.run_id: run for run in runs(experiment=experiment)}
    parents = {run_id: run for run_id, run in entries.items() if plan_run.PARENT_TAG not in run.data.tags}
    return {
        (parents[run.data.tags[plan_run.PARENT_TAG]].data.params["command"], arm_of(run)): run.data.metrics
        for run in entries.values()
        if plan_run.PARENT_TAG in run.data.tags
    }


def test_perf_and_ppl_of_a_folder_are_a_run_each(store: Path, folder: Path) -> None:
    first = tracking.log_all(folder)
    assert tracking.log_all(folder) == first
    assert len(runs()) == 2 * 3
    by_arm_and_command = metrics()
    assert by_arm_and_command["perf", "bf16"][f"latency/{SHAPE}/speedup_low"] == 1
    assert by_arm_and_command["perf", "fp8"][f"latency/{SHAPE}/speedup"] == pytest.approx(1.99, abs=0.01)
    assert by_arm_and_command["perf", "fp8"][f"fairness/{SHAPE}/experts_per_layer_step"] == 50
    assert by_arm_and_command["ppl", "fp8"]["quality/ln_ppl_ratio"] == pytest.approx(0.01, abs=0.002)
    assert "quality/ln_ppl_ratio" not in by_arm_and_command["ppl", "bf16"], "no padding"
    for (command, _), figures in by_arm_and_command.items():
        assert not any(math.isnan(value) for value in figures.values())
        start = ("headline/", "latency/", "fairness/") if command == "perf" else ("headline/", "quality/")
        assert all(key.startswith(start) for key in figures)
    client = mlflow.MlflowClient()
    for logged, command in zip(first, ("perf", "ppl"), strict=True):
        files = {file.path for file in client.list_artifacts(logged.run_id)}
        assert files == {"run.json", "comparison.json", "report.png"}
        parent = client.get_run(logged.run_id)
        where = f"{GPU} · vllm" if command == "perf" else "CPU · transformers"
        assert parent.info.run_name == f"x · {where} · bf16, fp8"
        headlines = {key: value for key, value in by_arm_and_command[command, "fp8"].items() if "headline/" in key}
        assert parent.data.metrics == headlines
        assert set(headlines) >= {f"headline/{'speedup' if command == 'perf' else 'ppl_change_percent'}"}


def test_a_harness_run_in_the_same_folder_is_logged_as_well(store: Path, folder: Path) -> None:
    RECORD.write(folder)
    assert len(tracking.log_all(folder)) == 3


def test_an_open_run_becomes_the_logged_one(store: Path, folder: Path) -> None:
    opened = plan_run.open_run(folder, "perf")
    assert [run.info.status for run in runs()] == ["RUNNING"]
    assert plan_run.open_run(folder, "perf") == opened
    assert plan_run.log(folder, "perf") == opened
    assert plan_run.open_run(folder, "perf") == opened
    assert len(runs()) == 3
    with pytest.raises(UsageError, match=r"holds no run\.json"):
        plan_run.open_run(folder)


def test_a_new_comparison_is_logged_anew(store: Path, folder: Path) -> None:
    before = plan_run.log(folder, "perf").run_id
    (folder / "perf_comparison.json").write_text("{}")
    assert plan_run.log(folder, "perf").run_id != before
    assert len(runs()) == 3
    assert f"latency/{SHAPE}/speedup" not in metrics()["perf", "fp8"]


def test_what_a_run_did_not_come_to_is_killed_and_what_failed_has_failed(store: Path, folder: Path) -> None:
    run = recorded_arms.run(["bf16", "fp8"], ("latency",), command="perf")
    disk.write_record(folder / "perf_run.json", replace(run, status=Status.KILLED, ended=None))
    for name, error in (("bf16", UNMEASURED), ("fp8", "out of memory")):
        record = replace(latency(name, {1: [[1.0]]}, status=Status.FAILED), error=error)
        disk.write_record(folder / f"perf_{name}_sm90.json", record)
    plan_run.log(folder, "perf")
    assert {arm_of(run): run.info.status for run in runs()} == {
        "parent": "KILLED",
        "bf16": "KILLED",
        "fp8": "FAILED",
    }


def test_a_damaged_record_is_refused_before_anything_is_logged(store: Path, folder: Path) -> None:
    (folder / "perf_fp8_sm90.json").write_text("{")
    with pytest.raises(UsageError, match="is damaged"):
        plan_run.log(folder, "perf")
    assert mlflow.MlflowClient().get_experiment_by_name("moe_eval") is None


def test_a_damaged_trace_is_named_and_the_run_is_logged_without_it(store: Path, folder: Path) -> None:
    place = folder / "perf_arms" / "fp8"
    place.mkdir(parents=True)
    chrome_trace.write(folder / "raw.json")
    whole = files.keep(folder / "raw.json", place, "trace_b1_i512_o9")
    content = whole.read_bytes()
    for damaged in (b"", b"no gzip", content[:-200], gzip.compress(b"{}"), gzip.compress(b"SQLite format 3\0")):
        (place / "trace_b2_i512_o9.json.gz").write_bytes(damaged)
        run = RunFiles.read(folder, "perf")
        with TemporaryDirectory() as scratch:
            unreadable = run.stage(run.arms(), Path(scratch))
            assert [path.name for path in Path(scratch).rglob("trace_*")] == [whole.name]
        (sentence,) = unreadable
        assert sentence.startswith(f"{place / 'trace_b2_i512_o9.json.gz'} is not readable and not logged. ")
    logged = plan_run.log(folder, "perf")
    assert logged.describe().endswith(sentence)
    assert plan_run.log(folder, "perf") == logged  # what is there is left alone
    client = mlflow.MlflowClient()
    (arm,) = (run for run in runs() if arm_of(run) == "fp8")
    names = {entry.path for entry in client.list_artifacts(arm.info.run_id)}
    assert whole.name in names
    assert "trace_b2_i512_o9.json.gz" not in names
    shutil.copy(whole, place / "trace_b2_i512_o9.json.gz")
    assert plan_run.log(folder, "perf").run_id != logged.run_id


def test_what_mlflow_keeps_gives_the_same_comparison_without_scores(store: Path, folder: Path, tmp_path: Path) -> None:
    logged = plan_run.log(folder, "ppl")
    fetched = fetch.fetch(logged.run_id, tmp_path)
    assert not list(fetched.glob("*.npz"))
    (pair,) = pairs.compare(by_arm.read(fetched)).pairs
    (before,) = pairs.compare(by_arm.read(folder)).pairs
    assert pair.quality
    assert pair.quality.divergence
    assert pair.quality == before.quality


def test_figures_that_are_none_have_no_key() -> None:
    record = QualityRecord("bf16", "bf16", Status.FAILED, error="out of memory")
    assert keys.of_quality(record) == {}
    arms = [recorded_arms.arm(name, {1: [[100.0]] * 3}) for name in ("bf16", "fp8")]
    comparison = pairs.compare(arms)
    (shape,) = comparison.pairs[0].shapes
    unfair = replace(comparison.pairs[0], shapes=(replace(shape, verdict=Verdict.NOT_COMPARABLE),))
    broken = replace(comparison.pairs[0], verdict=Verdict.BROKEN)
    assert arms[1].latency
    for pair in (unfair, broken):
        figures = keys.of_latency(arms[1].latency, replace(comparison, pairs=(pair,)))
        assert f"latency/{shape.name}/e2e_ms" in figures
        assert not [key for key in figures if "speedup" in key or "energy_ratio" in key]


def test_every_ratio_has_a_key_and_its_interval() -> None:
    arms = [recorded_arms.arm("bf16", {1: [[100.0]] * 3}), recorded_arms.arm("fp8", {1: [[48.0], [50.0], [52.0]]})]
    comparison = pairs.compare(arms)
    (shape,) = comparison.pairs[0].shapes
    own, other = (keys.of_latency(arm.latency, comparison) for arm in arms if arm.latency)
    ratios = {"speedup": "e2e_ms", "ttft_speedup": "ttft_ms", "tpot_speedup": "tpot_ms", "energy_ratio": "j_per_tok"}
    for name, figure in ratios.items():
        ratio = ratio_of(shape, figure)
        assert ratio is not None
        key = f"latency/{shape.name}/{name}"
        assert [other[f"{key}{end}"] for end in ("", "_low", "_high")] == [ratio.value, ratio.low, ratio.high]
        assert [own[f"{key}{end}"] for end in ("", "_low", "_high")] == [1, 1, 1]
    single = [recorded_arms.arm(name, {1: [[ms] * 6]}) for name, ms in (("bf16", 100.0), ("fp8", 50.0))]
    assert single[1].latency
    quick = keys.of_latency(single[1].latency, pairs.compare(single))
    assert quick[f"latency/{shape.name}/speedup"] == pytest.approx(2)
    assert f"latency/{shape.name}/speedup_low" not in quick, "a quick look has no interval"


def test_kernel_times_stand_by_shape_and_phase() -> None:
    record = replace(recorded_arms.kernels("bf16"), profiler_overhead=0.25)
    figures = keys.of_kernels(record)
    decode = record.phases["decode"]
    start = f"kernels/{record.shape}"
    assert figures[f"{start}/decode/expert_gemm_ms"] == decode.categories["expert_gemm"].ms
    assert figures[f"{start}/decode/busy_ms"] == decode.busy_ms
    assert figures[f"{start}/decode/idle_ms"] == decode.idle_ms
    assert figures[f"{start}/profiler_overhead"] == 0.25
    slight = replace(decode.categories["attention"], share=0.029)
    sparse = replace(record, phases={"decode": replace(decode, categories={**decode.categories, "attention": slight})})
    assert f"{start}/decode/attention_ms" not in keys.of_kernels(sparse)
    assert f"{start}/decode/attention_ms" in keys.of_kernels(sparse, keys.categories([sparse, record]))
    long = {name for phase in record.phases.values() for name, time in phase.categories.items() if time.share >= 0.03}
    of_decode = {key.removeprefix(f"{start}/decode/") for key in figures if "/decode/" in key}
    assert of_decode == {f"{name}_ms" for name in (*long & decode.categories.keys(), "busy", "idle")}
    assert keys.of_kernels(replace(record, phases={})) == {}
