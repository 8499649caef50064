"""`moe-eval ppl`: its records, its table and its exit codes, once for real and otherwise with arms that are made up."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from moe_eval.evaluators.perplexity import Scores

from moe_eval import cli
from moe_eval.comparison import comparable
from moe_eval.engines import registry
from moe_eval.engines.base import EngineSettings
from moe_eval.machine import hardware
from moe_eval.machine.hardware import Gpu
from moe_eval.runner import arm_process
from moe_eval.runner.arm_process import Found, Job
from tests.conftest import ROOT, SHIPPED

H100 = Gpu("NVIDIA H100 80GB HBM3", "9.0", 80 << 30, None)
CONTRACT = (
    *("precision", "sm_version", "gpu_name", "engine", "moe_backend", "fusion_disabled", "dataset", "dataset_digest"),
    *("input_len", "num_chunks", "perplexity", "per_chunk_ppls", "ln_ppl_ratio", "divergence", "noise_floor", "flag"),
)


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str
    records: dict[str, dict[str, Any]]


def records_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Every precision's record; a workload beside them is none."""
    return {file.name: json.loads(file.read_text()) for file in sorted(folder.glob("p*_*.json"))}


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """BF16 and emulated FP8 of the shipped model, each in its own process, NVFP4 not asked for."""
    folder = tmp_path_factory.mktemp("ppl")
    arguments = f"ppl --emulate --precisions bf16,fp8 --dataset moe_sample --num_chunks 12 --input_len 128 \
        --output_dir {folder}".split()
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


def test_every_precision_has_a_record_with_every_field(emulated: Ended) -> None:
    assert emulated.code == 0, emulated.err[-2000:]
    assert list(emulated.records) == ["ppl_bf16_cpu.json", "ppl_fp8_cpu.json"]
    for name, record in zip(("bf16", "fp8"), emulated.records.values(), strict=True):
        assert not [field for field in CONTRACT if field not in record]
        assert (record["status"], record["error"]) == ("finished", None)
        assert (record["precision"], record["emulated"]) == (name, name == "fp8")
        assert (record["sm_version"], record["gpu_name"], record["fusion_disabled"]) == (None, None, False)
        assert (record["engine"], record["dataset"], record["input_len"]) == ("transformers", "moe_sample", 128)
        assert record["num_chunks"] == len(record["per_chunk_ppls"]) == 12 < record["of_chunks"]
        assert record["labels"]["engine"]["precision"] == name
        assert record["machine"]["gpus"] == []
        assert record["versions"]["torch"]
        assert record["reference"] == "bf16"
    one, two = emulated.records.values()
    assert re.fullmatch("[0-9a-f]{32}", one["run_id"])
    assert comparable.one_run(one, two)


def test_all_arms_scored_the_same_windows(emulated: Ended) -> None:
    one, two = emulated.records.values()
    for field in ("dataset_digest", "tokens", "documents", "whole_documents", "words", "bytes", "num_chunks"):
        assert one[field] == two[field]


def test_the_statistics_fit_to_the_perplexities(emulated: Ended) -> None:
    one, two = emulated.records.values()
    ratio = two["ln_ppl_ratio"]
    assert ratio["value"] == pytest.approx(math.log(two["perplexity"] / one["perplexity"]), abs=1e-9)
    assert ratio["low"] < ratio["value"] < ratio["high"]
    assert one["ln_ppl_ratio"] == {"value": 0, "error": 0, "low": 0, "high": 0}
    assert one["divergence"]["mean"] == 0 < two["divergence"]["mean"] < 0.1
    assert 0.9 < two["divergence"]["same_top1"] <= one["divergence"]["same_top1"] == 1
    assert two["divergence"]["k"] == 64
    for record in (one, two):
        assert min(record["per_chunk_ppls"]) < record["perplexity"] < max(record["per_chunk_ppls"])


def test_the_noise_floor_is_smaller_than_what_fp8_changes(emulated: Ended) -> None:
    one, two = emulated.records.values()
    noise = two["noise_floor"]
    assert noise == one["noise_floor"]
    assert noise["batch_size"] == 1
    assert noise["divergence"]["mean"] < two["divergence"]["mean"] / 10
    assert abs(noise["ln_ppl_ratio"]["value"]) < 0.01


def test_the_table_shows_what_the_records_hold_and_that_windows_were_left_out(emulated: Ended) -> None:
    lines = emulated.out.splitlines()
    rows = {
        cells[0]: cells
        for cells in ([cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line)
    }
    one, two = emulated.records.values()
    assert rows["bf16"][1:5] == ["transformers", f"{one['perplexity']:.4f}", f"{one['word_ppl']:.4f}", "reference"]
    assert rows["fp8"][1:3] == ["transformers, emulated", f"{two['perplexity']:.4f}"]
    assert rows["fp8"][4] == f"{two['ln_ppl_ratio']['value']:+.5f}"
    assert rows["fp8"][6] == f"{two['divergence']['mean']:.5f}"
    assert len({len(line) for line in lines if line.startswith("|")}) == 1
    assert f"12 windows of at most 128 tokens, the first of {one['of_chunks']}" in emulated.out
    assert "64 most probable" in emulated.out
    assert "Noise floor (bf16 again with batch size 1): ln(ppl ratio)" in emulated.out
    assert "fp8: its static scales were calibrated on articles of the data set that is scored" in emulated.out
    assert "bf16: its" not in emulated.out
    assert "not a model to judge" in emulated.err


def test_a_broken_checkpoint_makes_a_failed_arm_and_no_exception(tmp_path: Path) -> None:
    folder = shutil.copytree(SHIPPED, tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"\0" * 100)
    job = Job(str(tmp_path / "x"), "transformers", EngineSettings(str(folder)), str(folder), "moe_sample", 64, 1)
    found = arm_process.run(job)
    assert found.status == "failed"
    assert "model.safetensors is corrupt or cut short" in str(found.error)
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


def made_up(job: Job) -> Found:
    """An arm that finishes at once; FP8 is 0.01 nats a token worse."""
    worse = 0.01 if "fp8" in job.stem else 0.0
    generator = np.random.default_rng(0)
    ids = np.tile(np.arange(3, dtype=np.int32), (20, 1))
    Scores(
        logprobs=(generator.normal(-2, 1, 20) - worse).astype(np.float32),
        lengths=np.array([10, 10]),
        documents=np.array([0, 1]),
        top_ids=ids,
        top_logprobs=np.log(np.full((20, 3), 0.3, np.float32)),
        digest="same",
    ).save(job.arrays)
    engine = {"name": job.engine, "emulated": False, "moe_backend_observed": "CutlassFusedMoE", "api_key": "hunter2"}
    figures = {"dataset": job.dataset, "dataset_digest": "same", "input_len": job.input_len, "num_chunks": 2}
    more = {"of_chunks": 2, "tokens": 20, "documents": 2, "whole_documents": 2, "perplexity": 7.0, "word_ppl": 9.0}
    return Found("finished", labels={"engine": engine}, figures={**figures, **more, "per_chunk_ppls": [7.0, 7.0]})


Command = Callable[..., Ended]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the command in this process on made-up arms, those in `broken` failing."""

    def run(*arguments: str, broken: tuple[str, ...] = (), gpus: tuple[Gpu, ...] = ()) -> Ended:
        def one(job: Job) -> Found:
            name = Path(job.stem).name
            if any(name.startswith(f"ppl_{each}_") for each in broken):
                return Found("failed", "out of memory")
            return made_up(job)

        monkeypatch.setattr(arm_process, "run", one)
        monkeypatch.setattr(hardware, "gpus", lambda: gpus)
        monkeypatch.setattr(registry, "check", registry.named)
        folder = tmp_path / "out"
        code = cli.main(["ppl", "--dataset", "moe_sample", "--output_dir", str(folder), *arguments])
        out, err = capsys.readouterr()
        return Ended(code, out, err, records_of(folder))

    return run


def checkpoint(folder: Path, algorithm: str) -> str:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": algorithm}}))
    return str(folder)


def test_what_a_gpu_cannot_run_is_one_line_and_a_record_and_the_rest_goes_on(command: Command, tmp_path: Path) -> None:
    paths = [f"--{name}_model_path={checkpoint(tmp_path / name, name.upper())}" for name in ("fp8", "nvfp4")]
    ended = command(f"--model_path={SHIPPED}", *paths, "--disable_fusion", gpus=(H100,))
    assert ended.code == 0, ended.err
    (line,) = [line for line in ended.out.splitlines() if line.startswith("Skipping")]
    assert line.startswith("Skipping nvfp4: not supported on SM90 (")
    assert list(ended.records) == ["ppl_bf16_sm90.json", "ppl_fp8_sm90.json", "ppl_nvfp4_sm90.json"]
    skipped = ended.records["ppl_nvfp4_sm90.json"]
    assert skipped["status"] == "skipped"
    assert line == f"Skipping {skipped['precision']}: {skipped['error']}"
    fp8 = ended.records["ppl_fp8_sm90.json"]
    assert (fp8["sm_version"], fp8["gpu_name"], fp8["fusion_disabled"]) == ("9.0", H100.name, True)
    assert (fp8["engine"], fp8["moe_backend"]) == ("trtllm", "CutlassFusedMoE")
    assert fp8["ln_ppl_ratio"]["value"] == pytest.approx(0.01, abs=1e-6)
    assert "hunter2" not in json.dumps(ended.records)


def test_the_same_command_twice_is_two_runs(command: Command) -> None:
    first, again = (command("--emulate").records for _ in range(2))
    assert comparable.one_run(first["ppl_bf16_cpu.json"], first["ppl_nvfp4_cpu.json"])
    assert not comparable.one_run(first["ppl_bf16_cpu.json"], again["ppl_nvfp4_cpu.json"])


def test_a_failed_arm_leaves_a_record_and_the_others_go_on(command: Command) -> None:
    ended = command("--emulate", broken=("fp8",))
    assert ended.code == 1
    assert "fp8 failed: out of memory" in ended.err
    assert ended.err.splitlines()[-1].startswith("moe-eval: 1 of 3 precisions failed")
    assert {name: record["status"] for name, record in ended.records.items()} == {
        "ppl_bf16_cpu.json": "finished",
        "ppl_fp8_cpu.json": "failed",
        "ppl_nvfp4_cpu.json": "finished",
    }
    assert ended.records["ppl_fp8_cpu.json"]["error"] == "out of memory"
    assert "| nvfp4" in ended.out
    assert "| fp8" not in ended.out


def test_where_the_first_arm_fails_the_next_is_the_reference(command: Command) -> None:
    ended = command("--emulate", broken=("bf16",))
    assert ended.code == 1
    assert ended.records["ppl_nvfp4_cpu.json"]["reference"] == "fp8"
    assert "Noise floor (fp8 again with batch size 1)" in ended.out


def test_where_every_arm_fails_there_is_no_table(command: Command) -> None:
    ended = command("--emulate", broken=("bf16", "fp8", "nvfp4"))
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.splitlines()[-1] == "moe-eval: No precision could be scored; see the lines above."
    assert {record["status"] for record in ended.records.values()} == {"failed"}


def test_where_every_precision_is_skipped_there_is_no_table_and_no_failure(command: Command) -> None:
    ended = command("--precisions", "fp8,nvfp4")
    assert ended.code == 0
    assert "|" not in ended.out
    assert ended.out.count("Skipping ") == 2
    assert "No precision was left to run" in ended.err
    assert {record["status"] for record in ended.records.values()} == {"skipped"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--precisions", "int4"], "no precision 'int4'"),
        (["--precisions", "bf16,bf16"], "each of them once"),
        (["--precisions", " , "], "each of them once"),
        (["--dataset", "c4"], "no data set 'c4'"),
        (["--dataset", "wikitext_local"], "Set MOE_EVAL_WIKITEXT"),
        (["--disable_fusion"], "--disable_fusion is a setting of TensorRT-LLM"),
        (["--engine", "foo"], "no engine 'foo'"),
        (["--input_len", "0"], "--input_len 0 --num_chunks 100 make no windows"),
        (["--num_chunks", "-1"], "--input_len 512 --num_chunks -1 make no windows"),
        (["--model_path", "/no/where", "--emulate"], "There is no folder /no/where"),
        (["--fp8_model_path", str(SHIPPED), "--precisions", "fp8"], "was given for fp8 and holds"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence_before_any_arm(
    command: Command, arguments: list[str], said: str
) -> None:
    ended = command(*arguments)
    assert ended.code == 2
    (line,) = [line for line in ended.err.splitlines() if line.startswith("moe-eval: ")]
    assert said in line
    assert line == ended.err.splitlines()[-1]
    assert (ended.out, ended.records) == ("", {})


def test_an_engine_that_is_not_installed_is_refused_before_any_arm(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    if registry.importlib.util.find_spec("tensorrt_llm"):
        pytest.skip("TensorRT-LLM is installed here")
    arguments = ["--model_path", str(SHIPPED), "--dataset", "moe_sample", "--output_dir", str(tmp_path)]
    assert cli.main(["ppl", "--precisions", "bf16", *arguments]) == 2
    assert "moe-eval[trtllm]" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
