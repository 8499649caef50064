"""`moe_latency` in the harness: one real command with another task beside it, and every way it is refused."""

from __future__ import annotations

import json
import math
import re
import shutil
import statistics
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lm_eval
import pytest
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager
from mlflow import MlflowClient

from moe_eval.errors import UsageError
from moe_eval.evaluators import latency
from moe_eval.evaluators.warm_up import UNSETTLED
from moe_eval.harness import latency as task
from moe_eval.harness.latency import MoeLatency
from moe_eval.harness.plugin import tasks_folder
from moe_eval.machine import hardware
from moe_eval.machine.hardware import Gpu
from moe_eval.machine.nvml import Nvml
from moe_eval.records.run import CUT_SHORT
from tests.conftest import SAMPLE, SHIPPED
from tests.contract.commands import Commands
from tests.doubles.timed_engine import MadeUp
from tests.engines.trtllm.conftest import installed
from tests.harness.running import Command, Ended, record, run_folders, samples, sentence

ASKED = {"batch_sizes": [1, 2, 3], "input_len": 16, "output_len": 24, "num_iterations": 6, "prompts": "moe_sample"}
NAMES = ("ttft_ms", "tpot_ms", "e2e_ms", "output_tok_s", "prefill_tok_s")
OURS = f"pretrained={SHIPPED},engine=transformers,track=off"


def asking(model_args: str, task: str = "moe_latency", **changes: Any) -> tuple[str, ...]:
    asked = {**ASKED, "batch_sizes": [1], "num_iterations": 1, **changes}
    model = ("--model", "trtllm_moe", "--model_args", model_args)
    return *model, "--tasks", task, "--metadata", json.dumps(asked)


@pytest.fixture(scope="module")
def ran(commands: Commands, empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Ended, Path]:
    """A command with both tasks of ours, limited to two documents of each, and its folder."""
    folder = tmp_path_factory.mktemp("ran")
    store = shutil.copy(empty_store, folder / "own.db")
    ended = commands.run(
        *("--model", "trtllm_moe", "--tasks", "moe_sample,moe_latency", "--limit", "2"),
        *("--metadata", json.dumps(ASKED)),
        folder=folder,
        double=None,
        variables={"MLFLOW_TRACKING_URI": f"sqlite:///{store}", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert ended.code == 0, ended.err[-3000:]
    return Ended(ended.code, ended.out, ended.err), folder


def test_one_run_holds_quality_and_speed_on_disk_and_in_mlflow(ran: tuple[Ended, Path]) -> None:
    _, folder = ran
    (run,) = run_folders(folder)
    content = record(run)
    assert content["status"] == "finished"
    assert "part of the documents only: not a result for the whole task" in content["notes"]
    client = MlflowClient(f"sqlite:///{folder / 'own.db'}")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert [run.info.status for run in runs] == ["FINISHED"]
    logged = runs[0].data.metrics
    assert logged == pytest.approx(content["metrics"])
    for shape in ("b1_i16_o24", "b2_i16_o24"):
        assert f"latency/{shape}/prefill_tok_s" not in logged, "it follows from ttft_ms"
        for name in NAMES[:4]:
            low, value, high = (logged[f"latency/{shape}/{name}{bound}"] for bound in ("_low", "", "_high"))
            assert 0 < low <= value <= high, name
    rows = [row["word_perplexity"] for row in samples(run, "moe_sample")]
    word_ppl = math.exp(-sum(nats for nats, _ in rows) / sum(words for _, words in rows))
    assert logged["quality/word_ppl"] == pytest.approx(word_ppl)
    assert [dataset["task"] for dataset in content["datasets"]] == ["moe_latency", "moe_sample"], "timed first"
    assert content["settings"]["metadata"]["batch_sizes"] == [1, 2, 3]


def test_the_harness_s_table_shows_both_tasks_and_a_limit_cuts_shapes(ran: tuple[Ended, Path]) -> None:
    ended, folder = ran
    (run,) = run_folders(folder)
    metrics = record(run)["metrics"]
    shown = dict(re.findall(r"\|(\w+)\s*\|(?:↓|↑)\s*\|\s*([\d.]+)\|", ended.out))
    assert float(shown["word_perplexity"]) == pytest.approx(metrics["quality/word_ppl"], abs=1e-4)
    for shape in ("b1_i16_o24", "b2_i16_o24"):
        for name in NAMES:
            assert float(shown[f"{name}_{shape}"]) == pytest.approx(
                metrics[f"harness/moe_latency/{name}_{shape}"], abs=1e-4
            )
    upwards = set(re.findall(r"\|(\w+)\s*\|↑", ended.out))
    assert upwards == {f"{name}_{shape}" for name in NAMES[3:] for shape in ("b1_i16_o24", "b2_i16_o24")}
    assert [row["doc"]["batch_size"] for row in samples(run, "moe_latency")] == [1, 2]
    assert "b3_i16_o24" not in ended.out + json.dumps(metrics)


def test_metrics_follow_from_the_samples_on_disk(ran: tuple[Ended, Path]) -> None:
    (run,) = run_folders(ran[1])
    metrics, rows = record(run)["metrics"], samples(run, "moe_latency")
    for row, batch in zip(rows, (1, 2), strict=True):
        (answer,) = row["filtered_resps"]
        times = {name: answer["metrics"][name]["samples"] for name in NAMES}
        for name, values in times.items():
            assert len(values) == 6
            assert metrics[f"harness/moe_latency/{name}_b{batch}_i16_o24"] == statistics.median(values)
            if name == "prefill_tok_s":
                continue
            key = f"latency/b{batch}_i16_o24/{name}"
            assert metrics[key] == statistics.median(values)
            # of six values nothing narrower than all of them holds the median in 95 of 100 cases: 1 - 2 / 2**6 do
            assert (metrics[f"{key}_low"], metrics[f"{key}_high"]) == (min(values), max(values))
        for first, step, last, made, read in zip(*times.values(), strict=True):
            assert step == pytest.approx((last - first) / 23)
            assert made == pytest.approx(1000 * batch * 24 / last)
            assert read == pytest.approx(1000 * batch * 16 / first)
        assert len(answer["warm_up"]["seconds"]) >= 5
        assert "moe_sample" in answer["workload"]["source"]
    assert not [key for key in metrics if "j_per_tok" in key], "there is no GPU whose energy could be read"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_iterations": 0}, ("0 iterations", "at least 1")),
        ({"warmup_iterations": 0}, ("0 of warm-up", "after 1")),
        ({"input_len": "many"}, ("whole numbers", "many")),
        ({"input_len": 16.5}, ("whole numbers", "16.5")),
        ({"output_len": math.inf}, ("whole numbers", "inf")),
        ({"batch_sizes": [True]}, ("whole numbers", "True")),
        ({"batch_sizes": []}, ("no batch size",)),
        ({"input_len": 1021}, ("1021", "1024")),
        ({"prompts": "no_such_text"}, ("no_such_text", "moe_sample")),
        ({"model_args": f"{OURS},emulate=true,precision=fp8,calibration_windows=1"}, ("fp8 is emulated",)),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_timed_ends_with_a_sentence_and_a_failed_record(
    command: Command, tmp_path: Path, changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    message = sentence(command(*asking(**{"model_args": OURS, **changes})))
    assert all(word in message for word in words), message
    (run,) = run_folders(tmp_path)
    assert record(run)["status"] == "failed"
    assert record(run)["error"] == message.replace("moe_eval: ", "UsageError: ")


@pytest.mark.parametrize("changes", [{"input_len": 1021}, {"prompts": "no_such_text"}])
def test_a_shape_that_cannot_be_timed_shows_before_anything_is_scored(
    command: Command, tmp_path: Path, changes: dict[str, Any]
) -> None:
    ended = command(*asking(OURS, "moe_sample,moe_latency", **changes))
    sentence(ended)
    assert "Scoring windows" not in ended.err


@pytest.mark.parametrize(
    ("named", "meant"),
    [("batch_size", "batch_sizes"), ("num_iteration", "num_iterations"), ("input_length", "input_len")],
)
def test_a_slip_in_the_metadata_is_told(command: Command, tmp_path: Path, named: str, meant: str) -> None:
    message = sentence(command(*asking(OURS, **{named: 3})))
    assert message == f"moe_eval: No task of moe_eval knows {named} in the metadata. Give {meant}."
    assert run_folders(tmp_path) == []
    asked = command(
        "--model", "trtllm_moe", "--model_args", OURS, "--tasks", "no_such", "--metadata", '{"batch_size": 2}'
    )
    assert "in the metadata" not in asked.err, "no task of ours is asked for"


def test_the_gpu_that_the_engine_is_on_is_metered(monkeypatch: pytest.MonkeyPatch) -> None:
    asked_for: list[list[str]] = []
    two = tuple(Gpu("made up", "9.0", 1 << 30, uuid) for uuid in ("GPU-0", "GPU-1"))
    monkeypatch.setattr(hardware, "gpus", lambda: two)
    monkeypatch.setattr(task.Nvml, "open", lambda uuids: asked_for.append(uuids) or Nvml(None, {}, "made up"))
    engine = MadeUp()
    monkeypatch.setattr(latency, "time", SimpleNamespace(perf_counter=engine.perf_counter))
    engine.facts = replace(engine.facts, device="cuda:1", gpus=1, worker="spawned")
    doc = {"batch_size": 1, "input_len": 2, "output_len": 5, "prompts": "random", "num_iterations": 1}
    request = Instance("moe_latency", {}, ("b1", {**doc, "warmup_iterations": 5}), 0)
    list(task.answers(engine, SimpleNamespace(all_special_ids=[0]), [request], lambda: None))
    assert asked_for[0] == ["GPU-1"]


def test_what_a_reader_of_the_figures_has_to_know_is_in_the_record() -> None:
    answer = {
        **{"shape": "b8_i16_o4", "notes": ["ttft_ms is far apart"], "slow_samples": [True, None, False]},
        "warm_up": {"seconds": [1.0] * 7, "ended": UNSETTLED},
    }
    assert task.notes([{"filtered_resps": [answer]}]) == [
        "moe_latency b8_i16_o4: ttft_ms is far apart",
        "moe_latency b8_i16_o4: the warm-up ended without having settled",
        "moe_latency b8_i16_o4: 1 of 3 iterations ran at under 75 % of the default clock",
    ]
    quiet = answer | {
        "notes": [],
        "slow_samples": [False],
        "warm_up": {"seconds": [1.0] * 7, "ended": "noise is steady"},
    }
    assert task.notes([{"filtered_resps": [quiet]}]) == []
    short = quiet | {"warm_up": {"seconds": [1.0], "ended": CUT_SHORT}}
    (note,) = task.notes([{"filtered_resps": [short]}])
    assert "quick look" in note


def test_more_sequences_than_the_engine_runs_at_once_are_refused(command: Command, tmp_path: Path) -> None:
    with installed("1.4.0rc1"):  # its max_batch_size is the harness's own default of 1
        ended = command(*asking(f"pretrained={SHIPPED},dtype=float32,track=off", batch_sizes=[1, 2]))
    assert "2 sequences are more than this arm runs at once (1)" in sentence(ended)
    (run,) = run_folders(tmp_path)
    assert record(run)["status"] == "failed"


def test_what_other_tasks_keep_from_run_to_run_leaves_timings_alone(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lm_eval.caching.cache.PATH", str(tmp_path / "requests"))
    kept = ("--use_cache", str(tmp_path / "answers"), "--cache_requests", "true", "--num_fewshot", "2", "--limit", "1")
    for sizes in ([1], [1], [2]):
        asked = asking(OURS, "moe_sample,moe_latency", batch_sizes=sizes, output_len=4, num_iterations="2")
        assert command(*asked, *kept).code == 0
    first_run, again, larger = sorted(run_folders(tmp_path), key=lambda run: (run / "record.json").stat().st_mtime)
    metrics = [record(run)["metrics"] for run in (first_run, again, larger)]
    assert ["quality/token_ppl" in logged for logged in metrics] == [True, False, False], "the other task was cached"
    first, second = (
        samples(run, "moe_latency")[0]["filtered_resps"][0]["metrics"]["e2e_ms"]["samples"]
        for run in (first_run, again)
    )
    assert len(first) == len(second) == 2
    assert first != second
    assert {key.split("/")[1] for key in metrics[2] if key.startswith("latency/")} == {"b2_i16_o4"}


def test_a_command_for_another_model_stops_before_it_is_loaded(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    monkeypatch.setattr("lm_eval.api.registry.get_model", loaded.append)
    model = ("--model", "hf", "--model_args", f"pretrained={SHIPPED}")
    assert "--model trtllm_moe" in sentence(command(*model, "--tasks", "moe_sample,moe_latency", "--limit", "1"))
    assert (loaded, run_folders(tmp_path)) == ([], [])


@pytest.mark.parametrize("form", ["name", "file", "group", "tag", "object"])
def test_however_another_model_is_given_the_task_it_is_refused(form: str, tmp_path: Path) -> None:
    ours = tasks_folder() / "moe_latency.yaml"
    (tmp_path / "group.yaml").write_text("group: timed_group\ntask: [moe_latency]\n")
    (tmp_path / "tag.yaml").write_text(f"include: {ours}\ntask: own_latency\ntag: timed_tag\n")
    manager = TaskManager(include_path=str(tmp_path))
    named = {"name": "moe_latency", "file": str(ours), "group": "timed_group", "tag": "timed_tag"}
    task = named.get(form) or MoeLatency({"task": "moe_latency", "metadata": {"version": 1.0}})
    with pytest.raises(UsageError, match="--model trtllm_moe"):
        lm_eval.simple_evaluate(model="dummy", tasks=[task], task_manager=manager)


def test_prompts_come_from_the_raw_file_that_the_variable_names(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOE_EVAL_WIKITEXT", str(SAMPLE))
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: pytest.fail("the hub was asked"))
    shape = {"input_len": 16, "output_len": 2, "num_iterations": 1, "warmup_iterations": 1}
    model = ("--model", "trtllm_moe", "--model_args", OURS, "--metadata", json.dumps(shape))
    ended = command(*model, "--tasks", "wikitext_local,moe_latency", "--limit", "1")
    assert ended.code == 0, ended.err
    assert "Custom kwargs" not in ended.err
    (run,) = run_folders(tmp_path)
    (answer,) = samples(run, "moe_latency")[0]["filtered_resps"]
    assert answer["workload"]["source"].startswith("wikitext_local, ")
    assert len(answer["warm_up"]["seconds"]) == 1
    assert any("quick look" in note for note in record(run)["notes"])
