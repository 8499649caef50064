"""What leaves the run's folder holds no host, user, folder, process id and GPU UUID, and no secret."""

from __future__ import annotations

import gzip
import json
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from mlflow import MlflowClient

from moe_eval import tracking
from moe_eval.cli import main
from moe_eval.cli import sensitivity as sensitivity_command
from moe_eval.errors import UsageError
from moe_eval.imports import harness_samples
from moe_eval.machine.hardware import Gpu
from moe_eval.records import anonymous, by_arm, disk
from moe_eval.records.labels import ArmLabels, Origin, Status
from moe_eval.records.latency import LatencyRecord
from moe_eval.records.sensitivity import LayerSensitivity, SensitivityFigures, SensitivityRecord, Suggestion
from moe_eval.records.tasks import TasksRecord
from moe_eval.report import write as report
from moe_eval.stats import Divergence
from moe_eval.traces.readers import files
from moe_eval.tracking import published
from tests.doubles import chrome_trace, harness_results, harness_runs
from tests.doubles import recorded_arms as made

UUID = "GPU-0badcafe-9abc-def0-1234-56789abcdef0"
PLANTED = ("zanzibar", "quetzal", "0badcafe", "918273", "/scratch/secretplace", "s3cr3tword")
MS = {1: [[100.0, 101.0], [100.0, 99.0]] * 2}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The working folder of quetzal on zanzibar."""
    home = tmp_path / "quetzal"
    home.mkdir()
    monkeypatch.setattr("socket.gethostname", lambda: "zanzibar.lab.example")
    monkeypatch.setattr("getpass.getuser", lambda: "quetzal")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    return home


def measured(folder: Path) -> Path:
    """A run of two arms whose records tell of the machine in every way."""
    folder.mkdir()
    machine = replace(made.machine(), gpus=(Gpu(made.GPU, "9.0", 80 << 30, UUID),))
    arms = []
    for name in ("bf16", "fp8"):
        arm = made.arm(name, MS, checkpoint="/scratch/secretplace/Qwen3", output_dir=str(folder))
        content = msgspec.to_builtins(arm.latency)
        content["shapes"][0]["notes"] = [f"quetzal saw {UUID} on zanzibar (pid 918273) in /scratch/secretplace/x"]
        latency = msgspec.convert(content | {"error": None}, LatencyRecord, str_keys=True)
        options = {"model_path": "/scratch/secretplace/Qwen3", "output_dir": str(folder), "tokenizer": None}
        arms.append(by_arm.ArmRecords(name, name, replace(latency, origin=Origin(made.RUN, options, machine))))
    run = replace(
        made.run(["bf16", "fp8"], ("latency",)), machine=machine, options=options, error="see /home/quetzal/x"
    )
    made.write(folder, arms, record=run)
    (folder / "rates.json").write_text(json.dumps({"method": f"on {UUID} of zanzibar"}))
    for arm in arms:
        place = folder / "arms" / arm.name
        place.mkdir(parents=True)
        chrome_trace.write(folder / "raw.json")
        files.keep(folder / "raw.json", place, "trace_b1_i512_o9")
        (place / "trace_b1_i512_o9.nsys-rep").write_text("HOSTNAME=zanzibar TOKEN=s3cr3tword")
        (place / "log.txt").write_text("zanzibar quetzal")
    return folder


def everything(client: MlflowClient, folder: Path) -> dict[str, str]:
    """All texts of all runs: names, tags, parameters, models and artifacts, by where they stand."""
    texts = {}
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    for run in client.search_runs(experiments):
        texts[f"{run.info.run_name} data"] = json.dumps(
            [run.info.run_name, run.data.tags, run.data.params, [str(entry) for entry in run.inputs.dataset_inputs]]
        )
        place = folder / run.info.run_id
        place.mkdir(parents=True)
        for entry in client.list_artifacts(run.info.run_id):
            client.download_artifacts(run.info.run_id, entry.path, str(place))
        for file in filter(Path.is_file, place.rglob("*")):
            content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
            texts[f"{run.info.run_name} {file.relative_to(place)}"] = content.decode("utf-8", "replace")
    for model in client.search_logged_models(experiments):
        texts[f"model {model.name}"] = json.dumps([model.name, model.params, model.tags])
    return texts


def test_a_run_in_mlflow_and_its_report_tell_of_nobody(store: Path, machine: Path, tmp_path: Path) -> None:
    folder = measured(machine / "run")
    uri = f"sqlite:///{store}"
    client = MlflowClient(uri)
    client.create_experiment("moe_eval", artifact_location=str(tmp_path / "artifacts"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        assert main(["compare", str(folder), "--output_dir", str(folder / "report")]) == 0
        tracking.log_run(folder)
        texts = everything(client, tmp_path / "fetched")
        for name in ("report.html", "report.md", "report.png"):
            texts[name] = (folder / "report" / name).read_bytes().decode("latin-1")
        assert any(name.endswith("trace_b1_i512_o9.json.gz") for name in texts)
        assert not [name for name in texts if "nsys-rep" in name or "log.txt" in name]
        for place, text in texts.items():
            for planted in (*PLANTED, str(machine)):
                assert planted not in text, (place, planted)
        fp8 = next(text for name, text in texts.items() if name.endswith("data") and '"fp8"' in text)
        assert '"Qwen3"' in fp8
        assert made.GPU in texts["report.html"]
        parent = next(run for run in client.search_runs(["1"]) if "mlflow.parentRunId" not in run.data.tags)
        assert main(["compare", parent.info.run_id, "--output_dir", str(tmp_path / "again")]) == 0
    before, after = (
        json.loads((place / "comparison.json").read_text()) for place in (folder / "report", tmp_path / "again")
    )
    for figure in ("speed", "verdict"):
        assert before["pairs"][0]["shapes"][0][figure] == after["pairs"][0]["shapes"][0][figure]


def test_a_run_of_the_harness_in_mlflow_tells_of_nobody(store: Path, machine: Path, tmp_path: Path) -> None:
    folder = harness_runs.written()
    record = json.loads((folder / "record.json").read_text())
    record["model_args"]["pretrained"] = "/scratch/secretplace/Qwen3"
    record["machine"] = {"gpus": [{"name": made.GPU, "uuid": UUID}]}
    record["notes"] = [f"quetzal on zanzibar saw {UUID} (pid 918273)"]
    (folder / "record.json").write_text(json.dumps(record))
    (folder / "results.json").write_text(json.dumps({"config": {"model_args": "pretrained=/scratch/secretplace/Q"}}))
    (folder / "samples_moe_latency.jsonl").write_text(json.dumps({"gpu": {"uuid": UUID}}) + "\n")
    (folder / "samples_gsm8k.jsonl").write_text('{"doc": "see http://a.b/c"}\n')
    client = MlflowClient(f"sqlite:///{store}")
    client.create_experiment("moe_eval", artifact_location=str(tmp_path / "artifacts"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
        tracking.log_run(folder)
        texts = everything(client, tmp_path / "fetched")
    for place, text in texts.items():
        for planted in (*PLANTED, str(machine)):
            assert planted not in text, (place, planted)
    assert any("http://a.b/c" in text for text in texts.values()), "documents stay as they are"


def test_tasks_an_endpoint_and_a_sensitivity_run_in_mlflow_a_report_and_an_export_tell_of_nobody(
    store: Path, machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, telling = machine / "run", f"quetzal saw {UUID} on zanzibar (pid 918273) in /scratch/secretplace/x"
    folder.mkdir()
    address = "http://quetzal:s3cr3tword@zanzibar.lab.example:8000/v1"
    of_machine = replace(made.machine(), gpus=(Gpu(made.GPU, "9.0", 80 << 30, UUID),))
    options = {"arms": ["a:engine=openai,model=m", f"b:engine=openai,base_url={address}"], "output_dir": str(folder)}
    origin = Origin(made.RUN, options, of_machine, made.run(["a"]).versions)
    labels = ArmLabels(
        engine=replace(
            made.TIMED_ON,
            checkpoint="/scratch/secretplace/Qwen3",
            device="endpoint",
            arguments={"base_url": address, "api_key": "[redacted]"},
        )
    )
    for arm, right in (("a", 1.0), ("b", 0.0)):
        results = harness_samples.read(harness_results.write(tmp_path / arm, {"arc": [right] * 40}))
        texts = dict.fromkeys(("answer", "response", "prompt_text", "target_text"), telling)
        documents = tuple(replace(row, **texts) for row in results.tasks[0].documents)
        results = replace(
            results, checkpoint="/scratch/secretplace/m", tasks=(replace(results.tasks[0], documents=documents),)
        )
        record = TasksRecord(
            arm, "bf16", Status.FINISHED, telling, "openai", results=results, labels=labels, origin=origin
        )
        disk.write_record(folder / f"tasks_{arm}_cpu.json", record)
    disk.write_record(
        folder / "run.json", replace(made.run(["a", "b"], ("tasks",)), machine=of_machine, options=options)
    )
    cost = Divergence(0.1, 0.1, 0.1, 128, 1.0, 1.0, "reference ids")
    layers = tuple(LayerSensitivity(at, f"model.layers.{at}.mlp.experts", 4, cost, None, None, 1) for at in (1, 2))
    scored = made.quality("a", made.scores(), run_id=made.RUN).figures
    assert scored is not None
    figures = SensitivityFigures(scored, layers, Suggestion(0.2, (1,), (2,), cost, 0.1, None, 1, 2, 3), 1.0)
    origin = replace(origin, run_id="5" * 32)
    sensitivity = SensitivityRecord("nvfp4", figures, "2026-01-01T00:00:00+00:00", labels, origin)
    disk.write_record(folder / "sensitivity_nvfp4_cpu.json", sensitivity)
    assert sensitivity_command._write_recipe(sensitivity, folder / "sensitivity_nvfp4_cpu.json") is not None
    client = MlflowClient(f"sqlite:///{store}")
    client.create_experiment("moe_eval", artifact_location=str(tmp_path / "artifacts"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
    assert main(["compare", str(folder), "--output_dir", str(folder)]) == 0
    tracking.log_all(folder)
    texts_by_place = everything(client, tmp_path / "fetched")
    assert main(["export", str(folder), str(tmp_path / "export.zip")]) == 0
    with zipfile.ZipFile(tmp_path / "export.zip") as archive:
        texts_by_place |= {
            f"export {name}": archive.read(name).decode("utf-8", "replace") for name in archive.namelist()
        }
    for name in ("report.html", "report.md"):
        texts_by_place[name] = (folder / name).read_text()
    for kind in (
        "samples/arc.json",
        "flips.json",
        "tasks.json",
        "recipe.yaml",
        "export tasks",
        "sensitivity_nvfp4_cpu.json",
    ):
        assert any(kind in place for place in texts_by_place), (kind, sorted(texts_by_place))
    for place, content in texts_by_place.items():
        for planted in (*PLANTED, str(machine)):
            assert planted not in content, (place, planted, content[max(0, content.find(planted) - 200) :][:400])
    published = next(content for place, content in texts_by_place.items() if place.endswith("recipe.yaml"))
    assert published == (folder / "sensitivity_nvfp4_cpu_recipe.yaml").read_text()
    assert published.startswith("# Qwen3: ")


def test_a_user_who_is_called_like_a_word_of_the_records_keeps_no_report_from_being_written(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "finished")
    comparison = made.pairs.compare(
        [made.arm(name, MS, checkpoint="/scratch/secretplace/Q") for name in ("bf16", "fp8")]
    )
    report.write(comparison, machine, "report.html", "report.md", made.run(["bf16", "fp8"], ("latency",)))
    assert "/scratch" not in (machine / "report.html").read_text()


@pytest.mark.parametrize(
    "name", ["rates.json", "report.html", "report.md", "samples_moe_latency.jsonl", "samples_a.jsonl"]
)
def test_an_artifact_that_is_no_file_or_damaged_is_told(tmp_path: Path, name: str) -> None:
    file, target, identity = tmp_path / name, tmp_path / "out" / name, anonymous.of_publication([])
    os.mkfifo(file)
    with pytest.raises(UsageError, match=r"is a pipe\. Run the command"):
        published.copy(file, target, identity)
    file.unlink()
    file.symlink_to("/dev/zero")
    with pytest.raises(UsageError, match=r"is a device\. Run the command"):
        published.copy(file, target, identity)
    file.unlink()
    if name == "samples_a.jsonl":  # a document of others stays as it is
        return
    for content in (b"\xff", b"[" * 3000, b"{" * 3000) if "json" in name else (b"\xff",):
        file.write_bytes(content)
        with pytest.raises(UsageError, match=r"is damaged|is unfit"):
            published.copy(file, target, identity)
