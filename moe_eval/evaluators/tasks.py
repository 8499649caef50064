"""The tasks evaluator: the harness's own evaluation of a loaded arm, with its results as the harness logs them."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from moe_eval.data import harness_tasks
from moe_eval.data.harness_tasks import TaskOptions
from moe_eval.errors import EngineError
from moe_eval.evaluators.answers import AnsweredModel
from moe_eval.frozen import frozen
from moe_eval.records import disk
from moe_eval.records.labels import ArmLabels, EngineFacts, Origin, Status
from moe_eval.records.quality import NO_NUMBERS
from moe_eval.records.task_results import ArmTaskResults
from moe_eval.records.tasks import EvaluatedSuite, TasksRecord

_SEEDS = (0, 1234, 1234)  # the harness's own of random, NumPy and torch


@frozen
class Place:
    """Where an evaluation is written.

    Attributes:
        folder: of results and samples. `answers`: the file of the model's answers, which may hold some already.
    """

    folder: Path
    answers: Path


def evaluate(
    model: Any, facts: EngineFacts, spec: str, options: TaskOptions, *, place: Place, repeat: int = 0
) -> EvaluatedSuite:
    """Evaluate a model of the harness on a task or group.

    Args:
        repeat: from 0. Repeats have other seeds, and the same examples in their prompts.

    Raises:
        UsageError: the task cannot be built.
        EngineError: a log-likelihood is no number.
    """
    from lm_eval import evaluator

    seeds = [seed + repeat for seed in _SEEDS]
    _seed(seeds)
    tasks = harness_tasks.loaded(spec, options, repeat)
    place.answers.parent.mkdir(parents=True, exist_ok=True)
    answered = AnsweredModel(model, place.answers)
    started = time.time()
    results = evaluator.evaluate(
        lm=answered,
        task_dict=tasks,
        limit=options.limit,
        bootstrap_iters=0,
        log_samples=True,
        apply_chat_template=options.apply_chat_template,
        fewshot_as_multiturn=True,
    )
    config = {
        "model": facts.name,
        "model_args": {"pretrained": facts.checkpoint, "precision": facts.precision},
        "limit": options.limit,
        "num_fewshot": options.num_fewshot,
        "apply_chat_template": options.apply_chat_template,
        "gen_kwargs": dict(options.gen_kwargs),
        **dict(zip(("random_seed", "numpy_seed", "torch_seed"), seeds, strict=True)),
        "fewshot_seed": harness_tasks.FEWSHOT_SEED,
    }
    labels = {"date": started, "model_source": facts.name, "model_name": facts.checkpoint, "config": config}
    file = _write(place.folder, {**results, **labels}, started)
    return EvaluatedSuite(
        file.name, sum(count["effective"] for count in results["n-samples"].values()), answered.before
    )


def _seed(seeds: Sequence[int]) -> None:
    import torch

    random.seed(seeds[0])
    np.random.seed(seeds[1])
    torch.manual_seed(seeds[2])


def _write(folder: Path, results: Mapping[str, Any], started: float) -> Path:
    """Write samples and then results, whose names are those that the harness gives them."""
    from lm_eval.utils import handle_non_serializable

    folder.mkdir(parents=True, exist_ok=True)
    date = datetime.fromtimestamp(started, timezone.utc).replace(tzinfo=None).isoformat(timespec="microseconds")
    suffix = date.replace(":", "-")
    for task, rows in results["samples"].items():
        _check(task, rows)
        lines = [json.dumps(row, default=handle_non_serializable, ensure_ascii=False) for row in rows]
        disk.write_text(folder / f"samples_{task}_{suffix}.jsonl", "\n".join(lines))
    file = folder / f"results_{suffix}.json"
    without_samples = {key: value for key, value in results.items() if key != "samples"}
    disk.write_json(file, disk.redact(without_samples), handle_non_serializable)
    return file


def _check(task: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Refuse log-likelihoods that are no numbers: an arm that gives them is broken."""
    for row in rows:
        for response in row["filtered_resps"]:
            value = response[0] if isinstance(response, (list, tuple)) and response else response
            if isinstance(value, float) and math.isnan(value):
                raise EngineError(f"Log-likelihoods of {task} {NO_NUMBERS}, document {row['doc_id']} among them.")


def record(
    arm: str,
    precision: str,
    status: Status,
    error: str | None,
    *,
    origin: Origin,
    labels: ArmLabels,
    results: ArmTaskResults | None,
) -> TasksRecord:
    """One arm's record. `precision`: that was planned. `results`: None where nothing was evaluated."""
    engine, gpus = labels.engine, origin.machine.gpus if origin.machine else ()
    gpu = gpus[0] if gpus and (engine is None or engine.device.startswith("cuda")) else None
    return TasksRecord(
        arm=arm,
        precision=precision,
        status=status,
        error=error,
        engine=engine.name if engine else None,
        moe_backend=engine.moe_backend_observed if engine else None,
        sm_version=gpu.capability if gpu else None,
        gpu_name=gpu.name if gpu else None,
        results=results,
        labels=labels,
        origin=origin,
    )
