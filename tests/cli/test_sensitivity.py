"""`moe-eval sensitivity`: its record, recipe, table and MLflow run, and what it refuses before a load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlflow
import pytest

from moe_eval import tracking
from moe_eval.cli import main
from moe_eval.records import disk
from moe_eval.records.sensitivity import SensitivityRecord
from moe_eval.runner import arm_process
from tests.cli.commands import Ended, cells, start
from tests.conftest import SHIPPED
from tests.engines.conftest import add_scales


@pytest.fixture(scope="module")
def ended(empty_store: Path, forked: Path, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    words = (
        "sensitivity --dataset moe_sample --num_chunks 6 --input_len 16 --max_kld 0.2 --precision fp8 "
        "--model_args dtype=float32,calibration_windows=1"
    )
    scratch = tmp_path_factory.mktemp("sensitivity")
    shutil.copy(empty_store, scratch / "own.db")
    return start(words, scratch, forked)


def test_it_leaves_a_record_with_every_label_a_recipe_and_a_run(ended: Ended, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ended.code == 0, ended.err[-2000:]
    file = ended.folder / "sensitivity_fp8_cpu.json"
    record = disk.read_record(file, SensitivityRecord, schemas=(1,), maker="moe-eval sensitivity")
    engine = record.labels.engine
    assert engine is not None
    assert (engine.name, engine.precision, engine.emulated, engine.dtype) == ("transformers", "fp8", True, "float32")
    assert engine.arguments["calibration"] == "1 windows of 512 tokens of moe_sample"
    assert (record.figures.reference.dataset, record.figures.reference.num_chunks) == ("moe_sample", 6)
    assert record.origin.versions["torch"]
    suggested = record.figures.suggestion.layers
    assert "scheme: FP8\n" in file.with_name("sensitivity_fp8_cpu_recipe.yaml").read_text(encoding="utf-8")
    rows = cells(ended.out)
    assert [row["layer"] for row in rows] == [str(entry.layer) for entry in record.figures.layers]
    assert [row["suggested"] == "yes" for row in rows] == [entry.layer in suggested for entry in record.figures.layers]
    assert "experts emulated in fp8 against float32 on transformers" in ended.out
    assert "tokens of 6 documents" in ended.out
    client = mlflow.MlflowClient(f"sqlite:///{ended.folder.parent / 'own.db'}")
    experiment = client.get_experiment_by_name("moe_eval")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    first = record.figures.layers[0]
    assert run.data.metrics[f"sensitivity/layer_{first.layer}/kld"] == pytest.approx(first.divergence.mean)
    assert run.data.tags["moe_eval.suggested_layers"] == ",".join(map(str, suggested))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{ended.folder.parent / 'own.db'}")
    assert tracking.log_run(ended.folder).run_id == run.info.run_id, "what is there is left alone"


def changed(folder: Path, **settings: object) -> str:
    shutil.copytree(SHIPPED, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = {name: value for name, value in (config | settings).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if "quantization_config" in settings:
        add_scales(folder / "model.safetensors")
    return str(folder)


QUANTISED = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
DENSE = {"num_experts": None, "num_experts_per_tok": None, "model_type": "qwen3"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--max_kld", "0"], "--max_kld 0 is a bound that nothing keeps. Give nats above 0."),
        (["--max_kld", "-1"], "--max_kld -1 is out of range."),
        (["--max_kld", "nan"], "--max_kld nan is out of range."),
        (["--precision", "mxfp8"], "--precision mxfp8 is unknown. Give one of fp8, fp8_block, nvfp4."),
        (["--experts", "-1"], "--experts -1 is out of range."),
        (["--dataset", "c4"], "no data set 'c4'"),
        (["--input_len", "0"], "make no windows"),
        (["--input_len", "2000"], "longer than the window of 1024 tokens"),
        (["--model_path", "/no/where"], "There is no folder /no/where"),
        (["--model_args", "scope=all"], "--model_args has scope, which this command sets itself."),
        (["--model_args", "attn=eager"], "knows no argument 'attn'"),
    ],
)
def test_what_cannot_be_is_refused_before_a_load(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(arm_process, "subprocess")
    words = ["sensitivity", "--dataset", "moe_sample", "--output_dir", str(tmp_path / "out"), *arguments]
    assert main(words) == 2
    err = capsys.readouterr().err
    assert sentence in err
    assert err.count("moe-eval: ") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [(QUANTISED, "is quantised already ("), (DENSE, "is a dense model, without experts.")],
)
def test_checkpoints_that_cannot_be_are_refused_before_a_load(
    settings: dict[str, object],
    sentence: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(arm_process, "subprocess")
    words = ["sensitivity", "--dataset", "moe_sample", "--model_path", changed(tmp_path / "model", **settings)]
    assert main([*words, "--output_dir", str(tmp_path / "out")]) == 2
    assert sentence in capsys.readouterr().err
