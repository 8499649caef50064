"""The tokens that every rank schedules in a step, where the engine's ranges tell."""

from __future__ import annotations

import re
from functools import cache

import numpy as np

from moe_eval.traces import ranges
from moe_eval.traces.entries import Entries, Recording
from moe_eval.traces.kernel_table import NONE, distinct
from moe_eval.traces.row_times import Floats

_TOKENS = (
    # vLLM: `execute_context_1(512)_generation_8(8)`, and with sums `execute_520_context_1(sq512sk...`
    r"execute_context_\d+\((\d+)\)_generation_\d+\((\d+)\)",
    r"execute_(\d+)_context_",
    # SGLang: `step[EXTEND bs=2 toks=4096]`
    r"step\[\w+ .*?\btoks=(\d+)",
    # AMD's ATOM: `prefill[bs=2 tok=14721 ctx=[...]]`
    r"(?:prefill|decode)\[bs=\d+ tok=(\d+)",
)


@cache
def tokens_of(text: str) -> int | None:
    """The tokens that a step's range names, None where it names none."""
    match = next(filter(None, (re.search(pattern, text) for pattern in _TOKENS)), None)
    return sum(map(int, match.groups())) if match else None


def tokens_by_rank(recording: Recording, entries: Entries) -> Floats:
    """The tokens by step and rank, NaN where they are not told, shape (steps, ranks).

    A step's range is the last one to begin on the launching thread before the rank's last kernel was launched.
    """
    kernels, steps = recording.trace.kernels, recording.trace.ranges
    tokens_of_range = {at: tokens_of(text) for at, text in enumerate(steps.names) if ranges.step(text)}
    steps = steps.take(np.isin(steps.name, list(tokens_of_range)))
    counts = [tokens_of_range[at] for at in steps.name.tolist()]
    tokens_of_step = np.array([np.nan if count is None else count for count in counts], np.float64)
    launched = np.flatnonzero(kernels.launch_ns[entries.row[: entries.rows]] != NONE)
    last = np.full(entries.times.shape[0] * entries.times.shape[1], NONE, np.int64)
    last[entries.cell[launched]] = entries.row[launched]
    tokens = np.full(len(last), np.nan)
    for thread in distinct(steps.thread):
        of_thread = steps.thread == thread
        cells = np.flatnonzero((last != NONE) & (kernels.launch_thread[last] == thread))
        place = np.searchsorted(steps.start_ns[of_thread], kernels.launch_ns[last[cells]], side="right") - 1
        tokens[cells[place >= 0]] = tokens_of_step[of_thread][place[place >= 0]]
    shaped: Floats = tokens.reshape(entries.times.shape[:2])
    return shaped
