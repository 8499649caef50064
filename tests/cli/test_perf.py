"""`moe-eval perf`: records, table and exit codes, once for real and otherwise with arms that are made up."""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_eval import cli
from moe_eval.comparison import comparable
from moe_eval.engines import registry
from moe_eval.evaluators.routing import Routing
from moe_eval.machine import hardware
from moe_eval.machine.hardware import Gpu
from moe_eval.runner import fit, interleave, speed_run
from moe_eval.runner.folder import RunFolder
from tests.cli.test_ppl import Ended, records_of
from tests.conftest import ROOT, SHIPPED
from tests.doubles.nvml import ONE, TWO, Card, Fake
from tests.runner.test_interleave import Process, Stage
from tests.runner.test_speed_record import cells

H100 = Gpu("NVIDIA H100 80GB HBM3", "9.0", 80 << 30, ONE)
CONTRACT = (
    *("precision", "quant_algo", "sm_version", "gpu_name", "moe_backend", "fusion_disabled", "batch_size", "input_len"),
    *("output_len", "num_iterations", "warmup_iterations", "mean_latency_ms", "std_latency_ms"),
    *("output_tokens_per_sec", "prefill_tokens_per_sec"),
)
Json = dict[str, Any]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """BF16 and FP32 of the shipped model at two batch sizes, each in its own process on the CPU."""
    folder = tmp_path_factory.mktemp("perf")
    arguments = f"perf --precisions bf16,fp32 --batch_size 1,2 --input_len 16 --output_len 4 --num_iterations 6 \
        --warmup_iterations 5 --dataset moe_sample --output_dir {folder}".split()
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from moe_eval.cli import main; sys.exit(main())", *arguments],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr, records_of(folder))


def shape_rows(ended: Ended) -> list[tuple[Json, Json]]:
    return [(record, row) for record in ended.records.values() for row in record["shapes"]]


def test_every_precision_has_a_record_with_every_field(real: Ended) -> None:
    assert real.code == 0, real.err[-2000:]
    assert list(real.records) == ["perf_bf16_cpu.json", "perf_fp32_cpu.json"]
    for name, record in zip(("bf16", "fp32"), real.records.values(), strict=True):
        assert not [field for field in CONTRACT if field not in record]
        assert (record["status"], record["error"], record["precision"]) == ("finished", None, name)
        assert (record["sm_version"], record["gpu_name"], record["fusion_disabled"]) == (None, None, False)
        assert (record["quant_algo"], record["weights"]) == ("none", "checkpoint")
        assert [record[name] for name in ("batch_size", "input_len", "output_len", "num_iterations")] == [1, 16, 4, 6]
        assert [row["name"] for row in record["shapes"]] == ["b1_i16_o4", "b2_i16_o4"]
        assert record["moe_backend"] == record["labels"]["engine"]["moe_backend_observed"]
        assert record["labels"]["engine"]["precision"] == name
        assert "no NVIDIA GPU" in record["nvml"] or "NVML does not start" in record["nvml"]
        assert record["memory"] == [{"before": None, "after": None, "together": 2}]
        for row in record["shapes"]:
            assert row["warmup_iterations"] == [len(each["seconds"]) for each in row["warm_ups"]]
            assert min(row["warmup_iterations"]) >= 5


def test_both_arms_ran_the_same_workload_in_turns(real: Ended) -> None:
    one, two = real.records.values()
    assert one["workload"] == two["workload"]
    assert len(one["workload"]["digest"]) == 16
    assert one["schedule"] == {"mode": "interleaved", "blocks": 3, "per_block": 2, "warm_ups": 5}
    for a, b in zip(one["shapes"], two["shapes"], strict=True):
        assert [len(block) for row in (a, b) for block in row["blocks"]] == [2] * 6
        spans = sorted(
            (each["started"], each["ended"], at, arm)
            for arm, row in (("A", a), ("B", b))
            for at, block in enumerate(row["blocks"])
            for each in block
        )
        assert "".join(arm for *_, arm in spans) == "ABBA" + "BAAB" + "ABBA"
        assert [block for _, _, block, _ in spans] == [0] * 4 + [1] * 4 + [2] * 4
        assert all(before[1] < after[0] for before, after in pairwise(spans)), "never two at once"


def test_figures_are_those_of_the_samples_by_the_hosts_clock(real: Ended) -> None:
    for _, row in shape_rows(real):
        size, timed = row["batch_size"], [each for block in row["blocks"] for each in block]
        first, last = ([each[call]["host"] for each in timed] for call in ("first", "last"))
        expected = {
            "ttft_ms": [1e3 * each for each in first],
            "tpot_ms": [1e3 * (b - a) / 3 for a, b in zip(first, last, strict=True)],
            "e2e_ms": [1e3 * each for each in last],
            "output_tok_s": [4 * size / each for each in last],
            "prefill_tok_s": [16 * size / each for each in first],
        }
        if row["metrics"]["tpot_ms"] is None:  # a busy machine, on which four tokens once took no longer than one
            assert min(expected.pop("tpot_ms")) <= 0
        for name, values in expected.items():
            found = row["metrics"][name]
            assert found["samples"] == pytest.approx(values)
            assert found["median"] == pytest.approx(statistics.median(values))
            assert (found["low"], found["high"]) == pytest.approx((min(values), max(values))), "of six samples"
            assert found["source"] == "host"
        assert row["metrics"]["j_per_tok"] is None
        assert set(row["sources"]) == {"host"}
        assert row["mean_latency_ms"] == pytest.approx(1e3 * statistics.fmean(last))
        assert row["std_latency_ms"] == pytest.approx(1e3 * statistics.stdev(last))
        assert all(each["last"]["host"] <= each["ended"] - each["started"] for each in timed)
    for record in real.records.values():
        assert [record[name] for name in CONTRACT[6:]] == [record["shapes"][0][name] for name in CONTRACT[6:]]


def test_the_speed_up_is_the_mean_of_the_blocks_logarithms(real: Ended) -> None:
    one, two = real.records.values()
    assert (one["reference"], two["reference"]) == (None, "bf16")
    for a, b in zip(one["shapes"], two["shapes"], strict=True):
        middle = [[statistics.median(x["last"]["host"] for x in block) for block in row["blocks"]] for row in (a, b)]
        ratio = math.exp(statistics.fmean(math.log(x / y) for x, y in zip(*middle, strict=True)))
        found = b["versus_reference"]["e2e_ms"]
        assert found["value"] == pytest.approx(ratio)
        assert (found["blocks"], found["source"]) == (3, "host")
        assert found["low"] < found["value"] < found["high"]


def test_routing_was_counted_and_is_fair(real: Ended) -> None:
    for record, row in shape_rows(real):
        counted = record["routing"][str(row["batch_size"])]
        # 19 tokens of every sequence are read, each of which goes through 4 of 16 experts in 5 layers
        assert np.array(counted["load"]).sum(axis=1).tolist() == [row["batch_size"] * 19 * 4] * 5
        assert row["experts_per_layer_step"] == counted["distinct"]
        assert row["experts_per_layer_step"] == 4 if row["batch_size"] == 1 else 4 < counted["distinct"] <= 8
        if row["versus_reference"]:
            assert row["versus_reference"]["fair"] is True


def test_floors_follow_from_the_loaded_weights_and_the_measured_rates(real: Ended) -> None:
    for record, row in shape_rows(real):
        size = 2 if record["precision"] == "bf16" else 4
        held, rates = record["labels"]["engine"]["weight_bytes"], record["rates"]
        assert sum(held.values()) == pytest.approx(size / 2 * (SHIPPED / "model.safetensors").stat().st_size, rel=0.01)
        step = row["floors"]["decode_step"]
        b, per_token = row["batch_size"], 5 * 2 * 2 * 32 * size  # layers, keys and values of 2 heads of 32
        moved = held["other"] + held["experts"] * row["experts_per_layer_step"] / 16 + b * (17 + 1) * per_token
        assert step["bytes"] == pytest.approx(moved + held["embedding"] * b / 4096)
        memory = step["bytes"] / rates["copy_bytes_per_s"]
        rate = rates["matrix_flops_per_s"]["bfloat16" if size == 2 else "float32"]
        assert step["predicted_ms"] == pytest.approx(1e3 * max(memory, step["flops"] / rate))
        floor = row["floors"]["prefill"]
        assert floor["measured_ms"] == row["metrics"]["ttft_ms"]["median"]
        assert floor["fraction_of_floor"] == pytest.approx(floor["predicted_ms"] / floor["measured_ms"])


def test_the_table_shows_what_the_records_hold_and_names_the_clock(real: Ended) -> None:
    one, two = real.records.values()
    for shown, shape, record in zip(cells(real.out), (0, 0, 1, 1), (one, two, one, two), strict=True):
        row = record["shapes"][shape]
        versus = row["versus_reference"]
        assert (shown["arm"], shown["batch"]) == (record["arm"], str(row["batch_size"]))
        assert shown["e2e ms"] == f"{row['metrics']['e2e_ms']['median']:,.1f}"
        assert shown["speed-up"] == (f"{versus['e2e_ms']['value']:.3f}x" if versus else "reference")
    assert "Clocks: e2e by host, TTFT and TPOT by host." in real.out
    assert one["workload"]["digest"] in real.out
    assert "A B B A" in real.out


Command = Callable[..., Ended]
OPTIONS = ["--dataset", "moe_sample", "--input_len", "16", "--output_len", "4", "--num_iterations", "4"]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the command in this process on a stage of arms that are named by their precision."""
    load = np.full((5, 16), 3)
    counted = Routing(1, 16, 4, 3, 4.0, 4.0, load, 16.0, 1.0).to_json()
    plain = Process.__init__

    def by_precision(self: Process, stage: Stage, load: Any) -> None:
        plain(self, stage, load)
        if load:
            self.name = load.settings.precision

    monkeypatch.setattr(Process, "__init__", by_precision)
    monkeypatch.setattr(registry, "check", registry.named)

    def run(*arguments: str, stage: Stage | None = None, gpus: tuple[Gpu, ...] = ()) -> Ended:
        stage = stage or Stage()
        stage.routing = {name: {"1": counted} for name in ("bf16", "fp16", "fp32")}
        monkeypatch.setattr(interleave, "ArmProcess", stage)
        monkeypatch.setattr(speed_run, "ArmProcess", stage)
        monkeypatch.setattr(hardware, "gpus", lambda: gpus)
        folder = tmp_path / "out"
        code = cli.main(["perf", *OPTIONS, "--output_dir", str(folder), *arguments])
        return Ended(code, *capsys.readouterr(), records_of(folder))

    return run


def test_a_failed_arm_leaves_a_record_and_the_others_go_on(command: Command, tmp_path: Path) -> None:
    ended = command("--precisions", "bf16,fp16,fp32", stage=Stage(fails={("fp16", "measure", 1): "out of memory"}))
    assert ended.code == 1
    assert "fp16 failed: out of memory" in ended.err
    assert ended.err.splitlines()[-1] == "moe-eval: 1 of 3 arms failed; see the lines above."
    assert "Traceback" not in ended.err
    assert [record["status"] for record in ended.records.values()] == ["finished", "failed", "finished"]
    failed = ended.records["perf_fp16_cpu.json"]
    assert (failed["error"], failed["num_iterations"]) == ("out of memory", 1)
    assert ended.records["perf_fp32_cpu.json"]["num_iterations"] == 4
    assert (tmp_path / "out" / f"workload_{failed['workload']['digest']}.json").is_file()
    assert [row["arm"] for row in cells(ended.out)] == ["bf16", "fp32"]


def test_where_the_first_arm_fails_the_next_is_the_reference_if_there_is_one(command: Command) -> None:
    fails = {(name, "load", 0): "out of memory" for name in ("bf16", "fp16")}
    ended = command("--precisions", "bf16,fp32", stage=Stage(fails=fails))
    assert ended.code == 1
    assert ended.records["perf_fp32_cpu.json"]["reference"] is None
    assert [(row["arm"], row["speed-up"]) for row in cells(ended.out)] == [("fp32", "reference")]
    ended = command("--precisions", "bf16,fp16", stage=Stage(fails=fails))
    assert (ended.code, ended.out) == (1, "")
    assert ended.records["perf_bf16_cpu.json"]["status"] == "failed"


def test_the_first_arm_can_be_measured_against_itself(command: Command) -> None:
    stage = Stage()
    ended = command("--precisions", "bf16,fp32", "--aa", stage=stage)
    assert list(ended.records) == ["perf_bf16-again_cpu.json", "perf_bf16_cpu.json", "perf_fp32_cpu.json"]
    again = ended.records["perf_bf16-again_cpu.json"]
    assert (again["arm"], again["precision"], again["reference"]) == ("bf16-again", "bf16", "bf16")
    speed_ups = [(row["arm"], row["speed-up"]) for row in cells(ended.out)]
    assert speed_ups == [("bf16", "reference"), ("bf16-again", "1.000x"), ("fp32", "1.000x")]
    assert comparable.one_run(ended.records["perf_bf16_cpu.json"], again)
    later = command("--precisions", "bf16,fp32", "--aa").records["perf_bf16-again_cpu.json"]
    assert not comparable.one_run(ended.records["perf_bf16_cpu.json"], later), "the same command is another run"


def test_a_lost_gpu_is_in_the_record(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(ONE, fails={"nvmlDeviceGetPerformanceState": "NVMLError_GpuIsLost"})
    monkeypatch.setitem(sys.modules, "pynvml", Fake([card]))
    ended = command("--precisions", "bf16", stage=Stage(pause=0.05), gpus=(H100,))
    assert ended.records["perf_bf16_sm90.json"]["nvml"].startswith(f"NVML lost {ONE}")


def test_another_gpu_than_the_first_is_measured_metered_and_named(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Fake([Card(ONE), Card(TWO)]))
    two, stage = (H100, replace(H100, name="another", uuid=TWO)), Stage()
    (record,) = command("--precisions", "bf16", "--model_args", "device=cuda:1", stage=stage, gpus=two).records.values()
    assert record["gpu_name"] == "another"
    assert {tuple(each["uuids"]) for each in stage.asked if each["task"] == "measure"} == {(TWO,)}
    assert [each["device"] for each in stage.asked if each["task"] == "rates"] == ["cuda:1"]


@pytest.mark.parametrize(("given", "trusted"), [("off", False), ("False", False), ("on", True), ("true", True)])
def test_code_of_a_repository_runs_only_where_that_is_on(command: Command, given: str, trusted: bool) -> None:
    stage = Stage()
    command("--precisions", "bf16", "--model_args", f"trust_remote_code={given}", stage=stage)
    loads = [each["load"] for each in stage.asked if each["task"] == "measure"]
    assert loads
    assert all(each.settings.trust_remote_code is trusted for each in loads)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("trust_remote_code=maybe", "trust_remote_code=maybe is neither on nor off"),
        ("dtype=float99", "dtype=float99 is no floating-point type of torch"),
        ("dtype=int8", "dtype=int8 is no floating-point type of torch"),
        ("device=cuda", "There is no device 'cuda' here"),
        ("device=tpu", "There is no device 'tpu' here"),
    ],
)
def test_arguments_that_no_engine_takes_are_refused_before_anything_is_written(
    command: Command, given: str, said: str
) -> None:
    ended = command("--precisions", "bf16", "--model_args", given)
    assert (ended.code, ended.records) == (2, {})
    assert ended.err.splitlines()[-1].startswith(f"moe-eval: {said}")


def test_records_of_an_earlier_command_are_kept_beside_those_of_the_next(command: Command, tmp_path: Path) -> None:
    command("--precisions", "bf16,fp32")
    before = (tmp_path / "out" / "perf_bf16_cpu.json").read_bytes()
    ended = command("--precisions", "bf16", stage=Stage(fails={("bf16", "load", 0): "out of memory"}))
    assert ended.records["perf_bf16_cpu.json"]["status"] == "failed"
    (kept,) = (tmp_path / "out" / "earlier").iterdir()
    assert f"1 files of an earlier command were moved to {kept}" in ended.err
    assert (kept / "perf_bf16_cpu.json").read_bytes() == before
    assert ended.records["perf_fp32_cpu.json"]["status"] == "finished", "what this command does not write stays"


def test_two_commands_do_not_write_into_one_folder_at_once(command: Command, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with RunFolder(tmp_path / "out").locked(0):
        ended = command("--precisions", "bf16")
    assert (ended.code, ended.records) == (2, {})
    assert "Another run is at work in" in ended.err.splitlines()[-1]


def test_labels_name_no_gpu_where_the_cpu_was_asked_for_and_no_secret(command: Command) -> None:
    stage = Stage()
    given = ["--engine", "trtllm", "--model_args", "device=cpu,hub_token=hunter2,max_num_tokens=64"]
    (name, record), *_ = command("--precisions", "bf16", *given, stage=stage, gpus=(H100,)).records.items()
    assert (name, record["gpu_name"], record["sm_version"]) == ("perf_bf16_cpu.json", None, None)
    assert [each["device"] for each in stage.asked if each["task"] == "rates"] == ["cpu"]
    assert "max_num_tokens=64" in record["asked"]["model_args"]
    assert "hunter2" not in json.dumps(record)


def test_arms_that_do_not_fit_together_are_loaded_in_every_block(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "memory", lambda _: int(1.5 * 2**30))  # one and its gibibyte of libraries
    stage = Stage()
    ended = command("--precisions", "bf16,fp16", "--blocks", "2", stage=stage)
    assert [name for name, task in stage.events if task == "measure"] == ["bf16", "fp16", "fp16", "bf16"]
    assert ended.records["perf_fp16_cpu.json"]["schedule"]["mode"] == "reloaded"
    assert "each was loaded again in every block" in ended.out
    ended = command("--precisions", "bf16,fp16", "--blocks", "1")
    assert "SEQUENTIAL" in ended.out
    assert cells(ended.out)[1]["speed-up interval"] == "none"


def test_what_does_not_fit_or_has_no_checkpoint_is_skipped(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "memory", lambda _: (1 << 30) + 18_000_000)  # 11.5 MB of weights in BF16, 23 in FP32
    ended = command("--precisions", "bf16,fp32,fp8")
    assert ended.code == 0
    lines = [line for line in ended.out.splitlines() if line.startswith("Skipping ")]
    assert "and 1.0 GiB can be used here" in lines[0]
    assert lines[1] == "Skipping fp8: no checkpoint of it was named (give --fp8_model_path)"
    for name, line in zip(("fp32", "fp8"), lines, strict=True):
        record = ended.records[f"perf_{name}_cpu.json"]
        assert (record["status"], line) == ("skipped", f"Skipping {name}: {record['error']}")
    monkeypatch.setattr(fit, "memory", lambda _: 1 << 30)
    ended = command("--precisions", "bf16,fp32")
    assert (ended.code, ended.out) == (2, "")
    assert [f"{name} does not fit here: it needs" in ended.err for name in ("bf16", "fp32")] == [True, True]


def test_where_every_precision_is_skipped_there_is_no_table_and_no_failure(command: Command) -> None:
    ended = command("--precisions", "fp8,nvfp4")
    assert (ended.code, ended.out.count("Skipping "), ended.out.count("|")) == (0, 2, 0)
    assert "No precision was left to run" in ended.err
    assert {record["status"] for record in ended.records.values()} == {"skipped"}
