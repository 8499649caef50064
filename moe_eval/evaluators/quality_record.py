"""The record of one arm's quality, with all its labels."""

from __future__ import annotations

from moe_eval.records.labels import ArmLabels, Origin, Status
from moe_eval.records.quality import NoiseFloor, QualityFigures, QualityRecord


def record(
    arm: str,
    precision: str,
    status: Status,
    error: str | None = None,
    *,
    origin: Origin,
    labels: ArmLabels,
    figures: QualityFigures | None,
    noise_floor: NoiseFloor | None = None,
    fusion_disabled: bool,
) -> QualityRecord:
    """One arm's record.

    Args:
        precision: that was planned.
        figures: None where nothing was scored.
    """
    engine, gpus = labels.engine, origin.machine.gpus if origin.machine else ()
    gpu = gpus[0] if gpus and (engine is None or engine.device != "cpu") else None
    return QualityRecord(
        arm=arm,
        precision=precision,
        status=status,
        error=error,
        emulated=engine.emulated if engine else None,
        engine=engine.name if engine else None,
        moe_backend=engine.moe_backend_observed if engine else None,
        sm_version=gpu.capability if gpu else None,
        gpu_name=gpu.name if gpu else None,
        fusion_disabled=fusion_disabled,
        figures=figures,
        noise_floor=noise_floor,
        labels=labels,
        origin=origin,
    )
