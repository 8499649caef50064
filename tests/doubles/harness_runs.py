"""A run of the harness as it is recorded, and runs as MLflow has them."""

from __future__ import annotations

from pathlib import Path

import mlflow
from mlflow.entities import Run, ViewType

from moe_eval.records.harness import DatasetFacts, HarnessRecord
from moe_eval.records.labels import Status

DATASET = DatasetFacts("moe_sample", "1.0", "local:moe_sample", "test", 14, "0123456789abcdef")
METRICS = {"quality/word_ppl": 254.5, "quality/tokens": 376298.0, "harness/moe_sample/word_perplexity": 254.5}
RECORD = HarnessRecord(
    run_id="0123456789abcdef0123456789abcdef",
    status=Status.FINISHED,
    started="2026-01-02T03:04:05+00:00",
    model_args={"pretrained": "/models/tiny-moe", "dtype": "bfloat16"},
    settings={"tasks": ["moe_sample"], "limit": None},
    seconds=12.5,
    labels={
        "engine": {"name": "transformers", "precision": "bf16", "checkpoint": "/models/tiny-moe", "graphs": []},
        "prefix_token_id": 0,
        "scored": {"moe_sample": {"requests": 14, "tokens": 5}},
    },
    machine={"cores": 2, "gpus": [{"name": "NVIDIA H100", "memory_bytes": 1}]},
    versions={"torch": "2.8"},
    git="abc123-dirty",
    metrics=METRICS,
    datasets=(DATASET,),
    notes=("first note", "second note"),
)
PARAMS = {
    "model_args.pretrained": "tiny-moe",
    "model_args.dtype": "bfloat16",
    "harness.tasks": "moe_sample",
    "engine.name": "transformers",
    "engine.precision": "bf16",
    "engine.checkpoint": "tiny-moe",
    "prefix_token_id": "0",
    "machine.cores": "2",
    "machine.gpus.0.name": "NVIDIA H100",
    "machine.gpus.0.memory_bytes": "1",
    "versions.torch": "2.8",
    "git": "abc123-dirty",
    "seconds": "12.5",
}


def written(record: HarnessRecord = RECORD) -> Path:
    """A run's folder below the working directory."""
    folder = Path("benchmark_results") / record.run_id
    folder.mkdir(parents=True)
    record.write(folder)
    (folder / "results.json").write_text('{"results": {}}')
    (folder / "samples_moe_sample.jsonl").write_text('{"doc_id": 0}\n')
    return folder


def arm_of(run: Run) -> str:
    """The arm that a run of MLflow is of, or `parent`."""
    return str(run.data.tags.get("moe_eval.arm", "parent"))


def runs(uri: str | None = None, experiment: str = "moe_eval") -> list[Run]:
    client = mlflow.MlflowClient(uri)
    entry = client.get_experiment_by_name(experiment)
    assert entry is not None
    return list(client.search_runs([entry.experiment_id], run_view_type=ViewType.ACTIVE_ONLY))
