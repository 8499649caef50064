"""Whose run it is: a run that MLflow believes to go on, and whose process was killed outright, is set to killed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from moe_eval.tracking import store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PROCESS_TAG = "moe_eval.process"
KILLED = "killed outright: its process is gone"
_FIRST_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO of Linux: that of the machine, not of a container
# half a run does not pass for a whole one
_OF_KILLED = {store.STATUS_TAG: "killed", store.CONTENT_TAG: "half", "moe_eval.error": KILLED}
_COUNT = "progress/tasks_done"


def tags() -> dict[str, str]:
    """What a run that this process makes is known by: digests of the machine and of the process, which tell neither.

    Empty where the system does not tell processes apart for good.
    """
    try:
        return {PROCESS_TAG: f"{_machine()}:{_process(os.getpid())}"}
    except OSError:
        return {}


def end(client: MlflowClient, run_id: str, status: str, ended: int) -> None:
    """Close a run. Nobody's process is asked for any more. `ended`: milliseconds since 1970."""
    client.set_terminated(run_id, status, ended)
    with contextlib.suppress(Exception):  # one that a system without such tags has opened
        client.delete_tag(run_id, PROCESS_TAG)


def take(client: MlflowClient, run: Run) -> None:
    """Go on with a run in this process. What said that it was killed is taken back."""
    run_id = run.info.run_id
    if run.info.status != "RUNNING":
        client.update_run(run_id, "RUNNING")
        for tag in run.data.tags.keys() & _OF_KILLED.keys():
            client.delete_tag(run_id, tag)
    store.set_tags(client, run_id, tags())


def end_killed(client: MlflowClient, experiment_id: str) -> None:
    """Set runs of dead processes of this machine to killed, with the reason. All other runs are left alone.

    A store that refuses this, as one that can only be read, keeps nothing else from being done.
    """
    with contextlib.suppress(Exception):  # MLflow and what lies under it raise whatever they like
        machine = _machine()
        going = f"attributes.status = 'RUNNING' AND tags.`{PROCESS_TAG}` LIKE '{machine}:%'"
        runs = client.search_runs([experiment_id], going)
        living = _living() if runs else ()
        for run in runs:
            if run.data.tags[PROCESS_TAG].partition(":")[2] not in living:
                _end(client, run.info.run_id, run.info.start_time)


def _end(client: MlflowClient, run_id: str, started: int) -> None:
    store.set_tags(client, run_id, _OF_KILLED)
    heard = [metric.timestamp for metric in client.get_metric_history(run_id, _COUNT)]
    end(client, run_id, "KILLED", max(heard, default=started))


def _machine() -> str:
    """Of this boot inside a container, where images share their id and processes outside are not seen.

    Only a user's own runs are of it, since a system may hide the processes of others.

    Raises:
        OSError: the system has no such files.
    """
    namespace, boot = os.readlink("/proc/self/ns/pid"), _boot()
    try:
        machine = Path("/etc/machine-id").read_text(encoding="ascii").strip() or boot
    except OSError:
        machine = boot
    lasting = machine if namespace == _FIRST_NAMESPACE else boot
    return _digest(lasting, namespace, socket.gethostname(), os.getuid())[:12]


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _process(pid: int) -> str | None:
    """By when it began after the boot, in the kernel's ticks: psutil's time moves with the clock. None of a dead one.

    Raises:
        OSError: there is none, or the system has no such files.
    """
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in "ZX" else _digest(_boot(), pid, fields[18])[:16]


def _living() -> set[str | None]:
    living = set()
    for pid in psutil.pids():
        with contextlib.suppress(OSError):  # it ended meanwhile
            living.add(_process(pid))
    return living


def _digest(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, ("moe_eval", *parts))).encode()).hexdigest()
