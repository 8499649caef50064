"""`moe-eval ppl`: its records, its table and its exit codes, once for real and otherwise with arms that are made up."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from moe_eval import cli
from moe_eval.engines import registry
from moe_eval.machine.hardware import Gpu
from moe_eval.records import disk
from moe_eval.records.comparison import ComparisonRecord
from moe_eval.records.labels import Status
from moe_eval.records.quality import QualityFigures, QualityRecord
from tests.cli.commands import Command, Ended, cells, start
from tests.conftest import SHIPPED
from tests.doubles import arm_process

H100 = Gpu("NVIDIA H100 80GB HBM3", "9.0", 80 << 30, None)
COMMAND = ["ppl", "--dataset", "moe_sample"]


def records_of(folder: Path) -> dict[str, QualityRecord]:
    """Every arm's record by the name of its file."""
    files = sorted(folder.glob("ppl_*_*.json"))
    return {file.name: disk.read_record(file, QualityRecord, schemas=(2,), maker="moe-eval ppl") for file in files}


def comparison_of(folder: Path) -> ComparisonRecord:
    return disk.read_record(folder / "ppl_comparison.json", ComparisonRecord, schemas=(2,), maker="moe-eval ppl")


@pytest.fixture(scope="module")
def emulated(empty_store: Path, forked: Path, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """BF16 and emulated FP8 of the shipped model, each in its own process, NVFP4 not asked for."""
    words = "ppl --emulate --precisions bf16,fp8 --dataset moe_sample --num_chunks 12 --input_len 128"
    scratch = tmp_path_factory.mktemp("ppl")
    shutil.copy(empty_store, scratch / "own.db")
    return start(words, scratch, forked)


@pytest.fixture(scope="module")
def records(emulated: Ended) -> tuple[QualityRecord, QualityRecord]:
    bf16, fp8 = records_of(emulated.folder).values()
    return bf16, fp8


@pytest.fixture(scope="module")
def figures(records: tuple[QualityRecord, QualityRecord]) -> tuple[QualityFigures, QualityFigures]:
    bf16, fp8 = (record.figures for record in records)
    assert bf16 is not None
    assert fp8 is not None
    return bf16, fp8


def test_every_arm_has_a_record_with_every_label(
    emulated: Ended, records: tuple[QualityRecord, QualityRecord], figures: tuple[QualityFigures, QualityFigures]
) -> None:
    assert emulated.code == 0, emulated.err[-2000:]
    assert list(records_of(emulated.folder)) == ["ppl_bf16_cpu.json", "ppl_fp8_cpu.json"]
    for name, record, scored in zip(("bf16", "fp8"), records, figures, strict=True):
        assert (record.status, record.error) == (Status.FINISHED, None)
        assert (record.precision, record.emulated) == (name, name == "fp8")
        assert (record.sm_version, record.gpu_name, record.fusion_disabled) == (None, None, False)
        assert (record.engine, scored.dataset, scored.input_len) == ("transformers", "moe_sample", 128)
        assert scored.num_chunks == len(scored.per_chunk_ppls) == 12 < scored.of_chunks
        assert record.labels.engine is not None
        assert record.labels.engine.precision == name
        assert record.origin.machine is not None
        assert record.origin.machine.gpus == ()
        assert record.origin.versions["torch"]
    assert comparison_of(emulated.folder).reference == "bf16"
    assert re.fullmatch("[0-9a-f]{32}", str(records[0].origin.run_id))
    assert records[0].origin.run_id == records[1].origin.run_id


def test_all_arms_scored_the_same_windows(figures: tuple[QualityFigures, QualityFigures]) -> None:
    bf16, fp8 = figures
    for name in ("dataset_digest", "tokens", "documents", "whole_documents", "words", "bytes", "num_chunks"):
        assert getattr(bf16, name) == getattr(fp8, name)


def test_the_statistics_fit_to_the_perplexities(
    emulated: Ended, figures: tuple[QualityFigures, QualityFigures]
) -> None:
    bf16, fp8 = figures
    (pair,) = comparison_of(emulated.folder).pairs
    assert pair.quality is not None
    ratio, divergence = pair.quality.ln_ppl_ratio, pair.quality.divergence
    assert ratio is not None
    assert divergence is not None
    assert fp8.perplexity is not None
    assert bf16.perplexity is not None
    assert ratio.value == pytest.approx(math.log(fp8.perplexity / bf16.perplexity), abs=1e-9)
    assert ratio.low < ratio.value < ratio.high
    assert 0 < divergence.mean < 0.1
    assert 0.9 < divergence.same_top1 <= 1
    assert divergence.kind == "reference ids", "the arm scores the most probable tokens of the reference"
    assert divergence.k == 128
    for scored in figures:
        windows = [value for value in scored.per_chunk_ppls if value is not None]
        assert scored.perplexity is not None
        assert min(windows) < scored.perplexity < max(windows)


def test_the_noise_floor_is_smaller_than_what_fp8_changes(
    emulated: Ended, records: tuple[QualityRecord, QualityRecord]
) -> None:
    noise = records[0].noise_floor
    (pair,) = comparison_of(emulated.folder).pairs
    assert noise is not None
    assert records[1].noise_floor is None, "the reference alone is scored a second time"
    assert noise.batch_size == 1
    assert pair.quality is not None
    assert pair.quality.divergence is not None
    assert noise.divergence.mean < pair.quality.divergence.mean / 10
    assert noise.ln_ppl_ratio is not None
    assert abs(noise.ln_ppl_ratio.value) < 0.01
    assert pair.quality.noise_floor is not None


def test_the_table_shows_what_the_records_hold_and_that_windows_were_left_out(
    emulated: Ended, figures: tuple[QualityFigures, QualityFigures]
) -> None:
    bf16, fp8 = figures
    (pair,) = comparison_of(emulated.folder).pairs
    assert pair.quality is not None
    assert pair.quality.ln_ppl_ratio is not None
    assert pair.quality.divergence is not None
    first, second = cells(emulated.out)
    assert (first["arm"], first["engine"], first["ln(ppl ratio)"]) == ("bf16", "transformers", "reference")
    assert first["perplexity"] == f"{bf16.perplexity:.4f}"
    assert (first["word ppl"], bf16.word_ppl, bf16.whole_documents) == ("-", None, 0), "no document is whole"
    assert (second["engine"], second["perplexity"]) == ("transformers, emulated", f"{fp8.perplexity:.4f}")
    assert second["ln(ppl ratio)"] == f"{pair.quality.ln_ppl_ratio.value:+.5f}"
    assert second["KLD mean"] == f"{pair.quality.divergence.mean:.5f}"
    first_table = emulated.out.partition("| arm")[2].partition("\n\n")[0]
    table = [line for line in first_table.splitlines()[1:] if line.startswith("|")]
    assert len(table) > 2
    assert len({len(line) for line in table}) == 1
    assert f"12 windows of at most 128 tokens, spread over {bf16.of_chunks}" in emulated.out
    assert "reference's 128 most probable" in emulated.out
    assert "Noise floor (bf16 again with batch size 1): ln(ppl ratio)" in emulated.out
    assert "fp8: Its static scales were calibrated on articles of the data set that is scored" in emulated.out
    assert "bf16: Its" not in emulated.out
    assert "not a model to judge" in emulated.err


def test_it_leaves_a_comparison_a_report_and_a_run_in_mlflow(emulated: Ended) -> None:
    names = {file.name for file in emulated.folder.iterdir()}
    assert {"ppl_run.json", "ppl_comparison.json", "ppl_report.html", "ppl_report.md"} <= names
    assert emulated.out.count("MLflow: run ") == 2
    assert "\nfp8: Quality only, the speed of fp8 is open." in emulated.out


def test_a_broken_checkpoint_is_refused_in_one_sentence(command: Command, tmp_path: Path) -> None:
    model = shutil.copytree(SHIPPED, tmp_path / "model")
    (model / "model.safetensors").write_bytes(b"\0" * 100)
    ended = command("--model_path", str(model), "--engine", "transformers", "--precisions", "bf16")
    assert (ended.code, records_of(ended.folder)) == (2, {})
    assert "model.safetensors is corrupt or cut short" in ended.err
    assert "Traceback" not in ended.err


def checkpoint(folder: Path, algorithm: str) -> str:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save_file({"model.norm.weight": np.ones(4, np.float16)}, folder / "model.safetensors")
    (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": algorithm}}))
    return str(folder)


def test_an_arm_that_a_gpu_cannot_run_is_a_line_and_a_record_and_the_others_go_on(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arm_process, "FACTS", replace(arm_process.FACTS, device="cuda:0"))
    paths = [f"--{name}_model_path={checkpoint(tmp_path / name, name.upper())}" for name in ("fp8", "nvfp4")]
    ended = command(f"--model_path={SHIPPED}", *paths, "--disable_fusion", gpus=(H100,))
    assert ended.code == 0, ended.err
    (line,) = [line for line in ended.out.splitlines() if line.startswith("  skipped: ")]
    assert line.startswith("  skipped: nvfp4: not supported on SM90 (")
    records = records_of(ended.folder)
    assert list(records) == ["ppl_bf16_sm90.json", "ppl_fp8_sm90.json", "ppl_nvfp4_sm90.json"]
    skipped = records["ppl_nvfp4_sm90.json"]
    assert skipped.status is Status.SKIPPED
    assert line == f"  skipped: {skipped.precision}: {skipped.error}"
    fp8 = records["ppl_fp8_sm90.json"]
    assert (fp8.sm_version, fp8.gpu_name, fp8.fusion_disabled) == ("9.0", H100.name, True)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--precisions", "int4"], "no precision 'int4'"),
        (["--precisions", "bf16,bf16"], "Give each name once."),
        (["--precisions", " , "], "Give each name once."),
        (["--dataset", "c4"], "no data set 'c4'"),
        (["--dataset", "wikitext_local"], "Set MOE_EVAL_WIKITEXT"),
        (["--disable_fusion"], "--disable_fusion is a setting of TensorRT-LLM"),
        (["--engine", "foo"], "no engine 'foo'"),
        (["--input_len", "0"], "--input_len 0 --num_chunks 100 make no windows"),
        (["--num_chunks", "-1"], "--num_chunks -1 is out of range"),
        (["--model_path", "/no/where", "--emulate"], "There is no folder /no/where"),
        (["--fp8_model_path", str(SHIPPED), "--precisions", "fp8"], "was given for fp8 and holds"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence_before_any_arm(
    command: Command, arguments: list[str], sentence: str
) -> None:
    ended = command(*arguments)
    assert ended.code == 2
    (line,) = [line for line in ended.err.splitlines() if line.startswith("moe-eval: ")]
    assert sentence in line
    assert line == ended.err.splitlines()[-1]
    assert (ended.out, ended.folder.exists()) == ("", False)


def test_an_engine_that_is_not_installed_is_refused_before_any_arm(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    if registry.importlib.util.find_spec("tensorrt_llm"):
        pytest.skip("TensorRT-LLM is installed here")
    arguments = ["--model_path", str(SHIPPED), "--dataset", "moe_sample", "--output_dir", str(tmp_path)]
    assert cli.main(["ppl", "--precisions", "bf16", *arguments]) == 2
    assert "moe-eval[trtllm]" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
