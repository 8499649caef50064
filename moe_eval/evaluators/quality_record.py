"""What is written down of an arm's perplexity: one JSON record with every label, and two arms compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from moe_eval.evaluators import perplexity
from moe_eval.evaluators.perplexity import Scores
from moe_eval.machine import hardware
from moe_eval.records import disk

SCHEMA = 1
CALIBRATED = "its static scales were calibrated on articles of the data set that is scored, so other text may cost more"
RANDOM = "the weights are random, so no score says anything of the checkpoint"


def record(
    precision: str,
    status: str,
    error: str | None = None,
    *,
    run_id: str,
    labels: Mapping[str, Any],
    figures: Mapping[str, Any],
    asked: Mapping[str, Any],
    fusion_disabled: bool,
) -> dict[str, Any]:
    """One precision's record: its labels first, then its figures.

    Args:
        run_id: one for every run of a command.
        labels: what the arm's process said of itself; `figures`: what it found. Empty where it did not run.
        asked: the command's options, secrets removed.
    """
    machine = asdict(hardware.machine())
    engine = dict(labels.get("engine", {}))
    gpu = machine["gpus"][0] if machine["gpus"] and engine.get("device") != "cpu" else None
    return {
        "schema": SCHEMA,
        "run_id": run_id,
        "status": status,
        "error": error,
        "precision": precision,
        "emulated": engine.get("emulated"),
        "sm_version": gpu["capability"] if gpu else None,
        "gpu_name": gpu["name"] if gpu else None,
        "engine": engine.get("name"),
        "moe_backend": engine.get("moe_backend_observed"),
        "fusion_disabled": fusion_disabled,
        "asked": dict(asked),
        **figures,
        "labels": disk.redact(dict(labels)),
        "machine": machine,
        "versions": hardware.versions(),
        "git": hardware.git_state(),
    }


def of_random_weights(record: Mapping[str, Any]) -> bool:
    """Whether a record's engine made up the weights that were scored."""
    engine = record["labels"].get("engine")
    return isinstance(engine, Mapping) and engine.get("weights") == "random"


def of_calibration_text(record: Mapping[str, Any]) -> bool:
    """Whether static scales were calibrated on the data set that was scored."""
    engine = record["labels"].get("engine", {})
    return str(engine.get("arguments", {}).get("calibration")).endswith(f" of {record['dataset']}")


def noise(reference: Path, again: Path) -> dict[str, Any]:
    """What batching alone does to the reference: its arrays, and those of windows scored in batches of one."""
    compared = perplexity.compare(Scores.load(reference), Scores.load(again), noise=None)
    compared.pop("flag")
    return {"batch_size": 1, **compared}


def compared(reference: Path, other: Path, floor: Mapping[str, Any] | None) -> dict[str, Any]:
    """Two arms' arrays compared, with the noise floor as one number: how far batching moves ln(perplexity)."""
    ratio = floor["ln_ppl_ratio"] if floor else None
    return perplexity.compare(Scores.load(reference), Scores.load(other), abs(ratio["value"]) if ratio else None)
