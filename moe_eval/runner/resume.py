"""What a run was begun with, and that a run which goes on is still the same."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path

import msgspec

from moe_eval.errors import UsageError
from moe_eval.machine import hardware
from moe_eval.machine.hardware import Gpu
from moe_eval.records.labels import OptionValue, Status
from moe_eval.records.run import RunRecord
from moe_eval.runner.plan import Plan
from moe_eval.runner.request import RunRequest

# options that change nothing of what is measured
_OF_THE_COMMAND = {"output_dir", "config", "resume", "dry_run", "gpu", "timeout", "stall_timeout", "port"}
_OF_THE_TRACE = {"profiler", "nsys_args", "keep_report"}  # records say by which profiler
_NOT_OF_THE_RUN = _OF_THE_COMMAND | _OF_THE_TRACE | {"gate", "min_gain", "max_drop", "decide_on", "price_per_gpu_hour"}


def begin(request: RunRequest, plan: Plan, gpus: Sequence[Gpu]) -> RunRecord:
    """A run that begins now, as it is read back from disk.

    Args:
        gpus: those that the arms may use.
    """
    record = RunRecord(
        run_id=uuid.uuid4().hex,
        status=Status.RUNNING,
        started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=request.command,
        options=request.options,
        evaluators=plan.evaluators,
        skipped=plan.skipped,
        schedule=plan.schedule,
        tasks=len(plan.tasks),
        machine=replace(hardware.machine(), gpus=tuple(gpus)),
        versions=hardware.versions(),
        git=hardware.git_state(),
        arms={arm.name: arm.recorded(plan.placement.gpus(arm.name)) for arm in plan.arms},
    )
    return msgspec.json.decode(msgspec.json.encode(record), type=RunRecord)


def check_options(before: RunRecord, options: Mapping[str, OptionValue], folder: Path) -> None:
    """Refuse to go on with a run that was begun with other options.

    Raises:
        UsageError: with the options that differ.
    """
    names = {*before.options, *options} - _NOT_OF_THE_RUN
    changed = sorted(name for name in names if before.options.get(name) != options.get(name))
    if changed:
        raise UsageError(
            f"The run in {folder} was begun with other options ({', '.join(changed)}). Give the same options to resume "
            "it."
        )


def check(before: RunRecord, current: RunRecord, folder: Path) -> None:
    """Refuse to go on with a run that has other options, began elsewhere, or was planned otherwise.

    Raises:
        UsageError: with what differs.
    """
    check_options(before, current.options, folder)
    facts = _facts(before), _facts(current)
    pairs = {name: [side.get(name) or "none" for side in facts] for name in {**facts[0], **facts[1]}}
    differences = "; ".join(f"{name} {a} and now {b}" for name, (a, b) in pairs.items() if a != b)
    if differences:
        raise UsageError(
            f"The run in {folder} began elsewhere ({differences}). Resume it there, or begin another in another "
            "--output_dir."
        )
    changed = [name for name, arm in before.arms.items() if current.arms.get(name) != arm]
    if changed and list(before.evaluators) == list(current.evaluators):
        raise UsageError(
            f"The run in {folder} was begun with other settings of {' and '.join(changed)}, or on other GPUs. Give the "
            "same arms and free as much memory as they had, or begin another in another --output_dir."
        )
    earlier, later = _planned(before), _planned(current)
    if earlier != later:
        raise UsageError(
            f"The run in {folder} was planned as {earlier}, and the memory that is free now allows {later}. Free as "
            "much memory as it had and resume it, or begin another in another --output_dir."
        )


def _facts(run: RunRecord) -> dict[str, str | None]:
    """Machine, libraries and source, by the names that a message has for them."""
    machine = run.machine
    return {
        "CPU": machine.cpu,
        "cores": str(machine.cores),
        "GPUs": ", ".join(f"{gpu.name} {gpu.uuid or ''}".strip() for gpu in machine.gpus),
        "driver": machine.driver,
        "CUDA": machine.cuda,
        "Python": machine.python,
        **run.versions,
        "revision": run.git,
    }


def _planned(run: RunRecord) -> str:
    """The arms, what is measured of each, and how they take turns."""
    arms = (f"{arm} ({', '.join(evaluators)})" for arm, evaluators in run.evaluators.items())
    schedule = ", ".join(f"{name} {value}" for name, value in asdict(run.schedule).items())
    return f"{', '.join(arms)} with {schedule}"
