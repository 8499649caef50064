"""`moe-eval perf`: records, table and exit codes, once for real and otherwise with arms that are made up."""

from __future__ import annotations

import math
import re
import shutil
import statistics
import sys
from dataclasses import replace
from functools import partialmethod
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from moe_eval.engines import registry
from moe_eval.machine.hardware import Gpu
from moe_eval.records import disk
from moe_eval.records.comparison import ComparisonRecord
from moe_eval.records.labels import Status
from moe_eval.records.latency import LatencyRecord
from moe_eval.records.samples import Sample
from moe_eval.records.shape_latency import ShapeLatency
from moe_eval.records.verdicts import Verdict
from moe_eval.runner import fit
from moe_eval.runner.folder import RunFolder
from tests.cli.commands import Command, Ended, cells, start
from tests.conftest import SHIPPED
from tests.doubles.arm_process import Stage
from tests.doubles.nvml import ONE, TWO, Card, Fake

H100 = Gpu("NVIDIA H100 80GB HBM3", "9.0", 80 << 30, ONE)
Records = dict[str, LatencyRecord]
COMMAND = ["perf", "--dataset", "moe_sample", "--input_len", "16", "--output_len", "4", "--num_iterations", "4"]


def records_of(folder: Path) -> Records:
    """Every arm's record by the name of its file."""
    files = sorted(folder.glob("perf_*_*.json"))
    return {file.name: disk.read_record(file, LatencyRecord, schemas=(2,), maker="moe-eval perf") for file in files}


def comparison_of(folder: Path) -> ComparisonRecord:
    return disk.read_record(folder / "perf_comparison.json", ComparisonRecord, schemas=(2,), maker="moe-eval perf")


@pytest.fixture(scope="module")
def real(empty_store: Path, forked: Path, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """BF16 and FP32 of the shipped model at two batch sizes, each in its own process on the CPU."""
    words = "perf --precisions bf16,fp32 --batch_size 1,2 --input_len 16 --output_len 4 --num_iterations 4 \
        --loads 2 --warmup_iterations 5 --dataset moe_sample"
    scratch = tmp_path_factory.mktemp("perf")
    shutil.copy(empty_store, scratch / "own.db")
    return start(words, scratch, forked)


@pytest.fixture(scope="module")
def arms(real: Ended) -> tuple[LatencyRecord, LatencyRecord]:
    """The records of the real run."""
    bf16, fp32 = records_of(real.folder).values()
    return bf16, fp32


def shape_rows(arms: tuple[LatencyRecord, LatencyRecord]) -> list[tuple[LatencyRecord, ShapeLatency]]:
    return [(record, row) for record in arms for row in record.shapes]


def test_every_arm_has_a_record_with_every_label(real: Ended, arms: tuple[LatencyRecord, LatencyRecord]) -> None:
    assert real.code == 0, real.err[-2000:]
    assert list(records_of(real.folder)) == ["perf_bf16_cpu.json", "perf_fp32_cpu.json"]
    for name, record in zip(("bf16", "fp32"), arms, strict=True):
        assert (record.status, record.error, record.precision) == (Status.FINISHED, None, name)
        assert (record.sm_version, record.gpu_name, record.fusion_disabled) == (None, None, False)
        assert (record.quant_algo, record.weights) == ("none", "checkpoint")
        assert (record.batch_size, record.input_len, record.output_len, record.num_iterations) == (1, 16, 4, 4)
        assert [row.name for row in record.shapes] == ["b1_i16_o4", "b2_i16_o4"]
        engine = record.labels.engine
        assert engine is not None
        assert (record.moe_backend, engine.precision) == (engine.moe_backend_observed, name)
        assert "no NVIDIA GPU" in str(record.nvml) or "NVML does not start" in str(record.nvml)
        assert [(use.before, use.after, use.together) for use in record.memory] == [(None, None, 2)] * 2
        for row in record.shapes:
            assert row.warmup_iterations == tuple(len(warm_up.seconds) for warm_up in row.warm_ups)
            assert min(row.warmup_iterations) >= 5
            assert len(row.warmup_iterations) == 2, "every load warms up"


def test_both_arms_ran_the_same_workload_in_turns(arms: tuple[LatencyRecord, LatencyRecord]) -> None:
    bf16, fp32 = arms
    assert bf16.workload == fp32.workload
    assert bf16.workload is not None
    assert len(bf16.workload.digest) == 16
    schedule = bf16.schedule
    assert schedule is not None
    assert (schedule.mode, schedule.loads, schedule.per_load, schedule.warm_ups) == ("turns", 2, 2, 5)
    for rows in zip(bf16.shapes, fp32.shapes, strict=True):
        assert [len(load) for row in rows for load in row.loads] == [2] * 4
        spans = sorted(
            (sample.started, sample.ended, at, arm)
            for arm, row in zip("AB", rows, strict=True)
            for at, load in enumerate(row.loads)
            for sample in load
        )
        assert "".join(arm for *_, arm in spans) == "ABBA" + "BAAB"
        assert [load for _, _, load, _ in spans] == [0] * 4 + [1] * 4
        assert all(before[1] < after[0] for before, after in pairwise(spans)), "never two at once"


def samples_of(row: ShapeLatency) -> list[Sample]:
    return [sample for load in row.loads for sample in load]


def of_two(*values: float) -> tuple[float, float]:
    """The interval of the geometric mean of two values: Student's t has one degree of freedom, which is Cauchy's."""
    logs = [math.log(value) for value in values]
    reach = math.tan(0.475 * math.pi) * abs(logs[0] - logs[1]) / 2
    return math.exp(statistics.fmean(logs) - reach), math.exp(statistics.fmean(logs) + reach)


def test_figures_are_those_of_the_samples_by_the_hosts_clock(arms: tuple[LatencyRecord, LatencyRecord]) -> None:
    for _, row in shape_rows(arms):
        size, samples = row.batch_size, samples_of(row)
        first, last = [sample.first["host"] for sample in samples], [sample.last["host"] for sample in samples]
        expected = {
            "ttft_ms": [1e3 * seconds for seconds in first],
            "tpot_ms": [1e3 * (end - begin) / 3 for begin, end in zip(first, last, strict=True)],
            "e2e_ms": [1e3 * seconds for seconds in last],
            "output_tok_s": [4 * size / seconds for seconds in last],
            "prefill_tok_s": [16 * size / seconds for seconds in first],
        }
        if row.metrics.tpot_ms is None:  # a busy machine, on which four tokens once took no longer than one
            assert min(expected.pop("tpot_ms")) <= 0
        for name, values in expected.items():
            metric = getattr(row.metrics, name)
            assert metric.samples == pytest.approx(values)
            medians = [statistics.fmean(values[at : at + 2]) for at in (0, 2)]
            assert metric.median == pytest.approx(math.prod(medians) ** 0.5)
            assert (metric.low, metric.high) == pytest.approx(of_two(*medians))
            assert (metric.source, metric.loads) == ("host", 2)
        assert row.metrics.j_per_tok is None
        assert set(row.figures.sources) == {"host"}
        assert row.figures.mean_latency_ms == pytest.approx(1e3 * statistics.fmean(last))
        assert row.figures.std_latency_ms == pytest.approx(1e3 * statistics.stdev(last))
        assert all(sample.last["host"] <= sample.ended - sample.started for sample in samples)
    for record in arms:
        row = record.shapes[0]
        assert record.mean_latency_ms == row.figures.mean_latency_ms
        assert record.std_latency_ms == row.figures.std_latency_ms
        assert record.output_tokens_per_sec == row.output_tokens_per_sec
        assert record.prefill_tokens_per_sec == row.prefill_tokens_per_sec


def test_the_speed_up_is_the_mean_over_pairs_of_loads_and_two_are_a_quick_look(
    real: Ended, arms: tuple[LatencyRecord, LatencyRecord]
) -> None:
    (pair,) = comparison_of(real.folder).pairs
    assert (pair.reference, pair.other, pair.verdict) == ("bf16", "fp32", Verdict.QUICK_LOOK)
    assert "\nfp32: Quick look, no verdict: fp32 against bf16" in real.out
    for reference, candidate, shape in zip(arms[0].shapes, arms[1].shapes, pair.shapes, strict=True):
        medians = [
            [statistics.median(sample.last["host"] for sample in load) for load in row.loads]
            for row in (reference, candidate)
        ]
        ratios = [x / y for x, y in zip(*medians, strict=True)]
        ratio = shape.speed.e2e_ms
        assert ratio is not None
        assert ratio.value == pytest.approx(math.prod(ratios) ** 0.5)
        assert (ratio.loads, ratio.source, ratio.df) == (2, "host", 1)
        low, high = of_two(*ratios)
        assert ratio.low == pytest.approx(low / ratio.widened)
        assert ratio.high == pytest.approx(high * ratio.widened)
        assert ratio.widened == shape.fairness.widened


def test_routing_was_counted_and_is_fair(real: Ended, arms: tuple[LatencyRecord, LatencyRecord]) -> None:
    for record, row in shape_rows(arms):
        assert record.routing is not None
        counted = record.routing[row.batch_size]
        # 19 tokens of every sequence are read, each of which goes through 4 of 16 experts in 5 layers
        assert np.array(counted.load).sum(axis=1).tolist() == [row.batch_size * 19 * 4] * 5
        assert row.experts_per_layer_step == counted.distinct
        assert counted.distinct is not None
        assert counted.distinct == 4 if row.batch_size == 1 else 4 < counted.distinct <= 8
    (pair,) = comparison_of(real.folder).pairs
    assert [shape.fairness.is_fair for shape in pair.shapes] == [True, True]


def test_floors_follow_from_the_loaded_weights_and_the_measured_rates(
    arms: tuple[LatencyRecord, LatencyRecord],
) -> None:
    for record, row in shape_rows(arms):
        size = 2 if record.precision == "bf16" else 4
        assert record.labels.engine is not None
        weights, rates = record.labels.engine.weight_bytes, record.rates
        assert weights is not None
        assert rates is not None
        file_bytes = (SHIPPED / "model.safetensors").stat().st_size
        assert sum(weights.values()) == pytest.approx(size / 2 * file_bytes, rel=0.01)
        step = row.floors.decode_step
        assert step is not None
        batch, per_token = row.batch_size, 5 * 2 * 2 * 32 * size  # layers, keys and values of 2 heads of 32
        assert row.experts_per_layer_step is not None
        moved = weights["other"] + weights["experts"] * row.experts_per_layer_step / 16 + batch * (17 + 1) * per_token
        assert step.floor.bytes == pytest.approx(moved + weights["embedding"] * batch / 4096)
        memory = step.floor.bytes / rates.copy_bytes_per_s
        rate = rates.matrix_flops_per_s["bfloat16" if size == 2 else "float32"]
        assert step.predicted_ms == pytest.approx(1e3 * max(memory, step.floor.flops / rate))
        prefill = row.floors.prefill
        assert prefill is not None
        assert row.metrics.ttft_ms is not None
        assert prefill.measured_ms == row.metrics.ttft_ms.median
        assert prefill.fraction == pytest.approx(prefill.predicted_ms / prefill.measured_ms)


def test_the_table_shows_what_the_records_hold_and_names_the_clock(
    real: Ended, arms: tuple[LatencyRecord, LatencyRecord]
) -> None:
    (pair,) = comparison_of(real.folder).pairs
    rows = [(record, at) for at in (0, 1) for record in arms]
    for shown, (record, at) in zip(cells(real.out), rows, strict=True):
        row = record.shapes[at]
        assert row.metrics.e2e_ms is not None
        assert (shown["arm"], shown["batch"]) == (record.arm, str(row.batch_size))
        digits = len(shown["e2e ms"].partition(".")[2])
        assert shown["e2e ms"] == f"{row.metrics.e2e_ms.median:,.{digits}f}"
    ratios = [row for row in cells(real.out, 1) if row["figure"] == "e2e"]
    for shown, shape in zip(ratios, pair.shapes, strict=True):
        assert shape.speed.e2e_ms is not None
        assert (shown["arm"], shown["batch"]) == (pair.other, str(shape.batch_size))
        assert shown["verdict"] == shape.verdict.value
        assert float(shown["ratio"].rstrip("x")) == pytest.approx(shape.speed.e2e_ms.value, abs=0.006)
    assert "Clocks: e2e by host, TTFT and TPOT by host." in real.out
    assert arms[0].workload is not None
    assert arms[0].workload.digest in real.out
    assert "2 loads of 2 iterations, the arms of a load live at once and take turns" in real.out


def test_it_leaves_a_comparison_a_report_and_a_run_in_mlflow(real: Ended) -> None:
    names = {file.name for file in real.folder.iterdir()}
    assert {"perf_run.json", "perf_comparison.json", "perf_report.html", "perf_report.md"} <= names
    assert real.out.count("MLflow: run ") == 2
    assert "\nfp32: " in real.out


def test_a_failed_arm_leaves_a_record_and_the_others_go_on(command: Command) -> None:
    ended = command("--precisions", "bf16,fp16,fp32", stage=Stage(fails={("fp16", "measure", 1): "out of memory"}))
    assert ended.code == 1
    assert "moe-eval: fp16 latency_b1_i16_o4_1_0 failed after " in ended.err
    assert "out of memory" in ended.err
    assert re.fullmatch(
        r"moe-eval: \d+ of \d+ tasks failed\. .* with --resume tries them again\.", ended.err.splitlines()[-1]
    )
    assert "Traceback" not in ended.err
    records = records_of(ended.folder)
    assert [record.status for record in records.values()] == [Status.FINISHED, Status.FAILED, Status.FINISHED]
    failed = records["perf_fp16_cpu.json"]
    assert "out of memory" in str(failed.error)
    assert records["perf_fp32_cpu.json"].num_iterations == 4
    assert failed.workload is not None
    assert (ended.folder / f"workload_{failed.workload.digest}.json").is_file()
    assert [row["arm"] for row in cells(ended.out)] == ["bf16", "fp32"]


def test_where_the_first_arm_fails_the_next_is_the_reference_if_there_is_one(command: Command) -> None:
    fails: dict[tuple[str | int, ...], str | BaseException] = {
        (name, "load", 0): "out of memory" for name in ("bf16", "fp16")
    }
    ended = command("--precisions", "bf16,fp32", stage=Stage(fails=dict(fails)))
    assert ended.code == 1
    assert comparison_of(ended.folder).reference == "fp32"
    assert [row["arm"] for row in cells(ended.out)] == ["fp32"]
    assert cells(ended.out, 1) == [], "there is nothing to compare it with"
    ended = command("--precisions", "bf16,fp16", stage=Stage(fails=dict(fails)))
    assert (ended.code, cells(ended.out)) == (1, [])
    assert records_of(ended.folder)["perf_bf16_cpu.json"].status is Status.FAILED


def test_the_first_arm_can_be_measured_against_itself(command: Command) -> None:
    ended = command("--precisions", "bf16,fp32", "--aa", stage=Stage(seconds=lambda arm, batch_size: 1.0))
    records = records_of(ended.folder)
    assert list(records) == ["perf_bf16-again_cpu.json", "perf_bf16_cpu.json", "perf_fp32_cpu.json"]
    again = records["perf_bf16-again_cpu.json"]
    assert (again.arm, again.precision, comparison_of(ended.folder).reference) == ("bf16-again", "bf16", "bf16")
    assert [row["arm"] for row in cells(ended.out)] == ["bf16", "bf16-again", "fp32"]
    ratios = [(row["arm"], row["ratio"]) for row in cells(ended.out, 1) if row["figure"] == "e2e"]
    assert ratios == [("bf16-again", "1.00x"), ("fp32", "1.00x")]
    assert records["perf_bf16_cpu.json"].origin.run_id == again.origin.run_id
    later = records_of(command("--precisions", "bf16,fp32", "--aa").folder)["perf_bf16-again_cpu.json"]
    assert later.origin.run_id != again.origin.run_id, "the same command is another run"


def test_another_gpu_than_the_first_is_measured_metered_and_named(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Fake([Card(ONE), Card(TWO)]))
    gpus, stage = (H100, replace(H100, name="another", uuid=TWO)), Stage()
    ended = command("--precisions", "bf16", "--model_args", "device=cuda:1", stage=stage, gpus=gpus)
    (record,) = records_of(ended.folder).values()
    assert record.gpu_name == "another"
    uuids = {tuple(request.arguments["uuids"]) for request in stage.asked if request.task == "measure"}
    assert uuids == {(TWO,)}
    assert [request.arguments["device"] for request in stage.asked if request.task == "rates"] == ["cuda:1"]


@pytest.mark.parametrize(("switch", "trusted"), [("off", False), ("False", False), ("on", True), ("true", True)])
def test_code_of_a_repository_runs_only_where_that_is_on(command: Command, switch: str, trusted: bool) -> None:
    stage = Stage()
    command("--precisions", "bf16", "--model_args", f"trust_remote_code={switch}", stage=stage)
    loads = [request.load for request in stage.asked if request.task == "measure"]
    assert loads
    assert all(load is not None and load.settings.trust_remote_code is trusted for load in loads)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("trust_remote_code=maybe", "trust_remote_code=maybe is neither on nor off"),
        ("dtype=float99", "dtype=float99 is no floating-point type of torch"),
        ("dtype=int8", "dtype=int8 is no floating-point type of torch"),
        ("device=cuda", "There is no device 'cuda' here"),
        ("device=tpu", "There is no device 'tpu' here"),
    ],
)
def test_arguments_that_no_engine_takes_are_refused_before_anything_is_written(
    command: Command, arguments: str, sentence: str
) -> None:
    ended = command("--precisions", "bf16", "--model_args", arguments)
    assert (ended.code, ended.folder.exists()) == (2, False)
    assert ended.err.splitlines()[-1].startswith(f"moe-eval: {sentence}")


def test_two_commands_do_not_write_into_one_folder_at_once(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RunFolder, "locked", partialmethod(RunFolder.locked, 0.0))
    (tmp_path / "out").mkdir()
    with RunFolder(tmp_path / "out").locked():
        ended = command("--precisions", "bf16")
    assert (ended.code, records_of(ended.folder)) == (2, {})
    assert "Another run is at work in" in ended.err.splitlines()[-1]


def test_labels_name_no_gpu_where_the_cpu_was_asked_for_and_no_secret(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "check_arm", lambda *_, **__: None)
    stage = Stage()
    words = ["--engine", "trtllm", "--model_args", "device=cpu,hub_token=hunter2,max_num_tokens=64"]
    ended = command("--precisions", "bf16", *words, stage=stage, gpus=(H100,))
    ((name, record),) = records_of(ended.folder).items()
    assert (name, record.gpu_name, record.sm_version) == ("perf_bf16_cpu.json", None, None)
    assert [request.arguments["device"] for request in stage.asked if request.task == "rates"] == ["cpu"]
    assert "max_num_tokens=64" in str(record.origin.options["model_args"])
    assert not any("hunter2" in file.read_text() for file in ended.folder.glob("*.json"))


def test_one_load_of_arms_that_do_not_fit_together_is_a_quick_look(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "memory", lambda _: int(1.5 * 2**30))  # one and its gibibyte of libraries
    ended = command("--precisions", "bf16,fp16", "--loads", "1")
    assert "1 load of 4 iterations, one arm loaded at a time" in ended.out
    assert "verdict: a quick look without a verdict, which takes 3 loads" in ended.out
    assert "\nfp16: Quick look, no verdict: fp16 against bf16" in ended.out
    assert cells(ended.out, 1)[0]["95 % interval"] == "none"


def test_what_does_not_fit_or_has_no_checkpoint_is_skipped(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "memory", lambda _: (1 << 30) + 18_000_000)  # 11.5 MB of weights in BF16, 23 in FP32
    ended = command("--precisions", "bf16,fp32,fp8")
    assert ended.code == 0
    lines = [line for line in ended.out.splitlines() if line.startswith("  skipped: ")]
    assert "and 1.0 GiB can be used here" in lines[0]
    assert lines[1] == "  skipped: fp8: no checkpoint of it was named (give --fp8_model_path)"
    records = records_of(ended.folder)
    for name, line in zip(("fp32", "fp8"), lines, strict=True):
        record = records[f"perf_{name}_cpu.json"]
        assert (record.status, line) == (Status.SKIPPED, f"  skipped: {name}: {record.error}")
    monkeypatch.setattr(fit, "memory", lambda _: 1 << 30)
    ended = command("--precisions", "bf16,fp32")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.splitlines()[-1].startswith("moe-eval: bf16 and fp32 do not fit here: each needs")


def test_where_every_precision_is_skipped_there_is_no_table_and_no_failure(command: Command) -> None:
    ended = command("--precisions", "fp8,nvfp4")
    assert (ended.code, ended.out.count("skipped: "), cells(ended.out)) == (0, 2, [])
    assert "No precision was left to run" in ended.err
    assert {record.status for record in records_of(ended.folder).values()} == {Status.SKIPPED}
