"""`moe_kernels` in the harness: one real command with another task beside it, and every way it is refused."""

from __future__ import annotations

import gzip
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
from mlflow import MlflowClient

from moe_eval.cli import main
from moe_eval.evaluators import kernels, kernels_record, latency
from moe_eval.traces.readers import files
from tests.conftest import SHIPPED
from tests.contract.commands import Commands
from tests.harness.running import Command, Ended, record, run_folders, samples, sentence

OUTPUT_LEN = 5
METADATA = {"batch_sizes": [1, 2], "input_len": 24, "output_len": OUTPUT_LEN, "prompts": "moe_sample"}
OURS = f"pretrained={SHIPPED},engine=transformers,track=off"
SECRET = "hunter2-very-secret-token"


@pytest.fixture(scope="module")
def ran(commands: Commands, empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Ended, Path]:
    """A command with the perplexity task beside, and its folder; a secret is in its environment."""
    folder = tmp_path_factory.mktemp("ran")
    store = shutil.copy(empty_store, folder / "own.db")
    ended = commands.run(
        *("--model", "trtllm_moe", "--tasks", "moe_sample,moe_kernels", "--limit", "2"),
        *("--metadata", json.dumps(METADATA)),
        folder=folder,
        double=None,
        variables={"MLFLOW_TRACKING_URI": f"sqlite:///{store}", "CUDA_VISIBLE_DEVICES": "", "HF_TOKEN": SECRET},
    )
    assert ended.code == 0, ended.err[-3000:]
    return Ended(ended.code, ended.out, ended.err), folder


def answers(folder: Path) -> list[dict[str, Any]]:
    (run,) = run_folders(folder)
    return [row["filtered_resps"][0] for row in samples(run, "moe_kernels")]


def test_steps_categories_and_layers_of_the_shipped_model(ran: tuple[Ended, Path]) -> None:
    for answer in answers(ran[1]):
        assert (answer["precision"], answer["precision_seen"], answer["verified"]) == ("bf16", None, None), "no types"
        assert (answer["steps_found_by"], answer["gates_told"]) == ("step ranges", "by range")
        phases = answer["phases"]
        decode_steps = phases["decode"]["steps"] + sum(phases["decode"]["set_aside"].values())
        assert (phases["prefill"]["steps"], decode_steps) == (1, OUTPUT_LEN - 1)
        config = json.loads((SHIPPED / "config.json").read_text())
        for phase in (phases["prefill"], phases["decode"]):
            assert sorted(map(int, phase["layers_ms"])) == list(range(config["num_hidden_layers"]))
            assert {"expert_gemm", "gate_gemm", "dense_gemm", "attention"} <= set(phase["categories"])
            assert sum(category["share"] for category in phase["categories"].values()) == pytest.approx(1)
            assert phase["classified"] > 0.98
        assert answer["profiled_ms"] > 0
        median = sorted(answer["unprofiled_samples_ms"])[kernels.UNPROFILED // 2]
        assert answer["unprofiled_ms"] == median
        assert answer["profiler_overhead"] == pytest.approx(answer["profiled_ms"] / median - 1)


def test_one_run_holds_metrics_and_traces_on_disk_and_in_mlflow(ran: tuple[Ended, Path]) -> None:
    ended, folder = ran
    (run,) = run_folders(folder)
    client = MlflowClient(f"sqlite:///{folder / 'own.db'}")
    (logged,) = client.search_runs([item.experiment_id for item in client.search_experiments()])
    assert logged.data.metrics == pytest.approx(record(run)["metrics"])
    for answer in answers(folder):
        for phase, values_of_phase in answer["phases"].items():
            key = f"kernels/{answer['shape']}/{phase}"
            for category, values in values_of_phase["categories"].items():
                is_logged = f"{key}/{category}_ms" in logged.data.metrics
                assert is_logged or values["share"] < 0.03, "what matters has a key"
                assert not is_logged or logged.data.metrics[f"{key}/{category}_ms"] == values["ms"]
        name, free = f"decode_ceiling_{answer['shape']}", answer["phases"]["decode"]["ceiling"]["if_free"]
        assert logged.data.metrics[f"harness/moe_kernels/{name}"] == free
        assert name in ended.out
    stored = {item.path for item in client.list_artifacts(logged.info.run_id)}
    assert {"trace_b1_i24_o5.json.gz", "trace_b2_i24_o5.json.gz"} <= stored
    assert "quality/token_ppl" in logged.data.metrics


def test_the_kept_trace_says_the_same_and_holds_no_secret(
    ran: tuple[Ended, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (run,) = run_folders(ran[1])
    for file in run.glob("trace_*"):
        text = gzip.decompress(file.read_bytes()).decode()
        for text_outside in (SECRET, os.uname().nodename, str(ran[1]), "site-packages", "lm_eval", "--metadata"):
            assert text_outside not in text
    everything = b"".join(file.read_bytes() for file in run.iterdir())
    assert SECRET.encode() not in everything
    for answer in answers(ran[1]):
        trace = files.read(run / answer["trace"], cpu=True)
        times = {"unprofiled_ms": answer["unprofiled_samples_ms"], "profiled_ms": answer["profiled_ms"]}
        again = kernels_record.shortened(kernels_record.make(answer["trace"], trace, "bf16", **times))
        expected = json.loads(msgspec.json.encode(again))
        measured = ("shape", "workload")
        assert {**answer, **dict.fromkeys(measured)} == {**expected, **dict.fromkeys(measured)}
    # a trace of a CPU is the evaluator's business; the command is about GPUs
    assert main(["kernels", "--input", str(run / "trace_b1_i24_o5.json.gz")]) == 2
    assert "CPU" in capsys.readouterr().err


def asking(model_args: str = OURS, **changes: Any) -> tuple[str, ...]:
    metadata = json.dumps({**METADATA, "batch_sizes": [1], **changes})
    model = ("--model", "trtllm_moe", "--model_args", model_args)
    return *model, "--tasks", "moe_kernels", "--metadata", metadata


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"input_len": "many"}, ("whole numbers", "many")),
        ({"output_len": math.inf}, ("whole numbers", "inf")),
        ({"batch_sizes": []}, ("no batch size",)),
        ({"input_len": 1021}, ("1021", "1024")),
        ({"prompts": "no_such_text"}, ("no_such_text", "moe_sample")),
        ({"model_args": f"{OURS},emulate=true,precision=fp8,calibration_windows=1"}, ("fp8 is emulated",)),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_traced_ends_with_a_sentence_and_a_failed_record(
    command: Command, tmp_path: Path, changes: dict[str, Any], parts: tuple[str, ...]
) -> None:
    message = sentence(command(*asking(**changes)))
    assert all(word in message for word in parts), message
    (run,) = run_folders(tmp_path)
    assert record(run)["status"] == "failed"


def test_another_model_is_refused_before_it_is_loaded(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lm_eval.api.registry.get_model", lambda _: pytest.fail("loaded"))
    model = ("--model", "hf", "--model_args", f"pretrained={SHIPPED}")
    message = sentence(command(*model, "--tasks", "moe_sample,moe_kernels", "--limit", "1"))
    assert message.startswith("moe_eval: moe_kernels measures")
    assert run_folders(tmp_path) == []


def test_nothing_is_timed_after_a_trace_in_whatever_order_tasks_are_named(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    for name, module in (("timed", latency), ("traced", kernels)):
        measure = module.measure

        def measured(*arguments: Any, name: str = name, measure: Any = measure) -> Any:
            order.append(name)
            return measure(*arguments)

        monkeypatch.setattr(module, "measure", measured)
    metadata = json.dumps({**METADATA, "batch_sizes": [1], "num_iterations": 1})
    model = ("--model", "trtllm_moe", "--model_args", OURS)
    ended = command(*model, "--tasks", "moe_kernels,moe_latency", "--metadata", metadata)
    assert ended.code == 0, ended.err[-2000:]
    assert order == ["timed", "traced"]
    (run,) = run_folders(tmp_path)
    assert {key.split("/")[0] for key in record(run)["metrics"]} == {"harness", "latency", "kernels"}


def test_an_arm_that_is_not_what_its_label_says_is_kept_and_fails_the_command(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        kernels.kernels_record, "contradiction", lambda label, precision_seen: f"the label says {label}, but no"
    )
    ended = command(*asking())
    assert ended.code == 1
    assert "moe_eval: NOT VERIFIED at b1_i24_o5: the label says bf16, but no." in ended.err
    (run,) = run_folders(tmp_path)
    assert record(run)["status"] == "finished"
    assert any(note.startswith("NOT VERIFIED") for note in record(run)["notes"])
    assert samples(run, "moe_kernels")[0]["filtered_resps"][0]["verified"] is False
