"""Limits of arms that suit the shapes they run, and whether all arms can be loaded at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from moe_eval.checkpoint import contents
from moe_eval.data.workload import Shape
from moe_eval.errors import UsageError
from moe_eval.machine.hardware import Gpu
from moe_eval.records.run import Skipped
from moe_eval.runner import fit
from moe_eval.runner.arm_plan import Arm

_LEAST_WINDOW = 64  # engines refuse windows of a few tokens
# options with which an arm takes a share of the GPU's memory whatever the others need
_SHARES = ("gpu_memory_utilization", "kv_cache_memory_bytes")


def fitted(planned: Sequence[Arm | Skipped], shapes: Sequence[Shape], gpus: Sequence[Gpu]) -> list[Arm | Skipped]:
    """The arms with limits that suit the shapes. One that the memory cannot hold is skipped.

    Raises:
        UsageError: a shape is longer than a model's window, or no arm at all fits.
    """
    available = fit.memory(gpus)
    arms = [arm for arm in planned if isinstance(arm, Arm)]
    stored = [contents.weight_bytes(folder(arm)) or 0 for arm in arms]
    too_large = [arm for arm in arms if _too_large(arm, shapes, gpus, available)]
    if arms and len(too_large) == len(arms):
        reasons = ((arm.name, _too_large(arm, shapes, gpus, available)) for arm in arms)
        raise UsageError(" ".join(f"{name} does not fit here: {reason}." for name, reason in reasons))
    return [
        entry if isinstance(entry, Skipped) else _limited(entry, shapes, gpus, available, max(stored) or None)
        for entry in planned
    ]


def _limited(
    arm: Arm, shapes: Sequence[Shape], gpus: Sequence[Gpu], available: int, heaviest: int | None
) -> Arm | Skipped:
    reason = _too_large(arm, shapes, gpus, available)
    if reason:
        return Skipped(arm.name, None, reason)
    limits = replace(
        arm.settings,
        max_length=_window(arm, shapes),
        batch_size=max(shape.batch_size for shape in shapes),
        kv_tokens=fit.cache_tokens(shapes),
        heaviest_bytes=heaviest,
    )
    return replace(arm, settings=limits)


def _too_large(arm: Arm, shapes: Sequence[Shape], gpus: Sequence[Gpu], available: int) -> str | None:
    fit.check_window(arm.settings.checkpoint, contents.read_config(folder(arm)), shapes)
    return fit.too_large(need(arm, shapes, gpus), available)


def _window(arm: Arm, shapes: Sequence[Shape]) -> int:
    """The longest shape, and no fewer tokens than engines take where the model has as many."""
    longest = max(shape.input_len + shape.output_len for shape in shapes)
    positions = fit.positions(contents.read_config(folder(arm)))
    return max(longest, _LEAST_WINDOW if positions is None else min(_LEAST_WINDOW, positions))


def together(arms: Sequence[Arm], shapes: Sequence[Shape], gpus: Sequence[Gpu]) -> bool:
    """Whether all arms fit at once."""
    needs = [need(arm, shapes, gpus) for arm in arms]
    bounded = not any(name in arm.settings.options for arm in arms for name in _SHARES)
    return bounded and fit.together(needs, fit.memory(gpus))


def need(arm: Arm, shapes: Sequence[Shape], gpus: Sequence[Gpu]) -> fit.Need:
    """The memory that an arm needs."""
    return fit.need(folder(arm), arm.precision, shapes, arm.settings.options, gpu=bool(gpus))


def folder(arm: Arm) -> Path:
    """The settings of an arm's checkpoint."""
    return contents.settings_folder(arm.settings.checkpoint, arm.settings.revision)
