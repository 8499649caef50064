"""What a run was asked and where it runs, and that a run which goes on is still the same."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from moe_eval.errors import UsageError
from moe_eval.machine import hardware
from moe_eval.machine.hardware import Gpu
from moe_eval.runner.plan import Plan

# options that change nothing of what is measured
_NOT_OF_THE_RUN = ("output_dir", "config", "resume", "dry_run", "timeout", "gate")
_MACHINE = {"cpu": "CPU", "cores": "cores", "gpus": "GPUs", "driver": "driver", "cuda": "CUDA", "python": "Python"}


def new(shown: Mapping[str, str], plan: Plan, gpus: Sequence[Gpu]) -> dict[str, Any]:
    """A run that begins now, as run.json has it.

    Args:
        shown: the command's options, secrets removed.
        gpus: those that the arms may use.
    """
    found = {
        "run_id": uuid.uuid4().hex,
        "status": "running",
        "error": None,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "asked": _asked(shown),
        "evaluators": plan.evaluators,
        "skipped": plan.skipped,
        "schedule": asdict(plan.schedule),
        "steps": len(plan.steps),
        "machine": asdict(replace(hardware.machine(), gpus=tuple(gpus))),
        "versions": hardware.versions(),
        "git": hardware.git_state(),
    }
    as_read: dict[str, Any] = json.loads(json.dumps(found))
    return as_read


def check_asked(before: Mapping[str, Any], shown: Mapping[str, str], folder: Path) -> None:
    """Refuse to go on with a run that was asked for something else.

    Args:
        before: of run.json. `shown`: see `new`.

    Raises:
        UsageError: with the options that differ.
    """
    was, is_now = _asked(before["asked"]), _asked(shown)
    changed = sorted(name for name in {**was, **is_now} if was.get(name) != is_now.get(name))
    if changed:
        raise UsageError(
            f"The run in {folder} was asked for with other options ({', '.join(changed)}); give the same ones to "
            "resume it."
        )


def check(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Refuse to go on with a run that was asked for something else, began elsewhere, or was planned otherwise.

    Args:
        before, now: of run.json and of `new`.

    Raises:
        UsageError: with what differs.
    """
    check_asked(before, now["asked"], folder)
    other = "; ".join(f"{name} {was} and now {is_now}" for name, was, is_now in _moved(before, now))
    if other:
        raise UsageError(
            f"The run in {folder} began elsewhere ({other}); resume it there, or begin another in another --output_dir."
        )
    was, is_now = _planned(before), _planned(now)
    if was != is_now:
        raise UsageError(
            f"The run in {folder} was planned as {was}, and the memory that is free now allows {is_now}; free as much "
            "as it had and resume it, or begin another in another --output_dir."
        )


def _planned(run: Mapping[str, Any]) -> str:
    """The arms, what is measured of each, and how they take turns."""
    arms = (f"{arm} ({', '.join(evaluators)})" for arm, evaluators in run["evaluators"].items())
    schedule = ", ".join(f"{name} {value}" for name, value in run["schedule"].items())
    return f"{', '.join(arms)} with {schedule}"


def _asked(shown: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in shown.items() if name not in _NOT_OF_THE_RUN}


def _moved(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """The facts of machine, libraries and source that differ: name, before, now."""
    facts = []
    for run in (before, now):
        machine = {called: run["machine"].get(name) for name, called in _MACHINE.items()}
        machine["GPUs"] = ", ".join(f"{each['name']} {each['uuid'] or ''}".strip() for each in machine["GPUs"] or ())
        facts.append({**machine, **run["versions"], "revision": run["git"]})
    for name in {**facts[0], **facts[1]}:
        was, is_now = (each.get(name) or "none" for each in facts)
        if was != is_now:
            yield name, was, is_now
