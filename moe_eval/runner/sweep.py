"""How far servers are driven without given numbers of users: until twice as many add nothing, the same for all arms."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

from moe_eval.evaluators import serving_figures
from moe_eval.records.run import Sweep
from moe_eval.runner.folder import RunFolder
from moe_eval.runner.plan import Plan
from moe_eval.runner.tasks import TRACED_LOAD, Task, served_load


def run(whole: Plan, folder: RunFolder, drive: Callable[[Plan, Sequence[Task]], None]) -> tuple[Plan, Sweep]:
    """Drive the first server of every arm until it is saturated, or a point of it fails.

    Each goes as far as those before it at least. What is on disk is not done again, so a run that goes on ends alike.

    Args:
        whole: with all points that a sweep may have.
        drive: does what is missing of some tasks. Its plan is the one that is known so far.

    Returns:
        The plan up to the most users that any arm was driven with, and why it ends there.
    """
    users, rates = 0, defaultdict[str, list[float | None]](list)
    for task in whole.tasks:
        if task.load != served_load(0) or task.point is None or task.point.concurrency is None:
            continue
        if task.point.concurrency > users:
            if _end(rates[task.arm]) is not None:
                continue
            users = task.point.concurrency
        # which point is traced is not known yet
        planned = [entry for entry in whole.up_to(users).tasks if entry.load != TRACED_LOAD]
        drive(replace(whole.up_to(users), tasks=tuple(planned)), [task])
        result = folder.result(task)
        load = result.serving if result else None
        rates[task.arm].append(serving_figures.tokens_per_second(load.times) if load else None)
    limit = f"a sweep has {users} users at most"
    return whole.up_to(users), Sweep(users, "; ".join(f"{arm}: {_end(rates[arm]) or limit}" for arm in rates))


def _end(rates: Sequence[float | None]) -> str | None:
    """Why an arm is driven with no more users. `rates`: its tokens per second, None where the point failed."""
    if None in rates:
        return "a load failed"
    values = [rate for rate in rates if rate is not None]
    if any(map(serving_figures.is_saturated, values, values[1:])):
        return f"twice the users add less than {100 * serving_figures.ADDED:g} % to the tokens per second"
    return None
