"""The ranks of a phase beside each other: their times, and the collectives that they share."""

from __future__ import annotations

import numpy as np

from moe_eval.records.kernels import Collectives, RankTime
from moe_eval.traces.collectives import TRANSFER
from moe_eval.traces.entries import Entries, Recording
from moe_eval.traces.kernel_table import NONE, Ints
from moe_eval.traces.lateness import late_ranks
from moe_eval.traces.medians import median_of
from moe_eval.traces.rank_tokens import tokens_by_rank
from moe_eval.traces.roles import NUMBER
from moe_eval.traces.row_times import Floats

_EXPERT = NUMBER["expert_gemm"]


def rank_times(recording: Recording, entries: Entries, busy_ms: Floats) -> tuple[RankTime, ...]:
    """The ranks that run some step of a phase, none for one alone. `busy_ms`: shape (steps, ranks)."""
    launches = entries.counts.sum(axis=2)
    ranks = np.flatnonzero(launches.any(axis=0)).tolist()
    columns = (busy_ms, entries.times[:, :, _EXPERT], entries.per_rank(recording.times.wait_ns), launches)
    if len(ranks) == 1:
        return ()
    devices = [int(recording.trace.kernels.device[rows[0]]) for rows in recording.ranks]
    tokens = [float(median_of(column)) for column in tokens_by_rank(recording, entries).T]

    def rank_time(rank: int) -> RankTime:
        present = launches[:, rank] > 0
        busy, experts, wait, size = (float(median_of(column[present, rank])) for column in columns)
        scheduled = None if np.isnan(tokens[rank]) else tokens[rank]
        return RankTime(rank, devices[rank], busy, experts, wait, size, scheduled)

    return tuple(map(rank_time, ranks))


def imbalance(entries: Entries) -> float | None:
    """The median over the steps of the slowest rank's expert GEMM time by the mean over ranks."""
    present = entries.counts.any(axis=2)
    experts = entries.times[:, :, _EXPERT]
    means = experts.sum(axis=1) / present.sum(axis=1)
    if present.any(axis=0).sum() == 1 or not means.any():
        return None
    return float(median_of(experts.max(axis=1)[means > 0] / means[means > 0]))


def collectives_of(recording: Recording, entries: Entries) -> Collectives | None:
    """The collectives of a phase, None for a trace of one rank or where none ran."""
    if len(recording.ranks) == 1:
        return None
    matches, late = recording.matches, recording.late
    steps = len(entries.times)
    step_of_row: Ints = np.full(len(recording.rank), NONE, np.int64)
    step_of_row[entries.row] = entries.step
    # a collective belongs to the step of the rank that enters last
    step = step_of_row[late.row]
    events = np.flatnonzero(step != NONE)
    unmatched = int((step_of_row[matches.unmatched] != NONE).sum())
    if not len(events) + unmatched:
        return None
    sizes = np.where(matches.members == NONE, 0, recording.trace.kernels.bytes[matches.members]).max(axis=1, initial=0)
    message = np.bincount(step[events], sizes[events], steps)
    return Collectives(
        matched=float(median_of(np.bincount(step[events], minlength=steps))),
        unmatched=unmatched,
        transfer_ms=float(median_of(entries.times[:, :, TRANSFER].max(axis=1))),
        message_bytes=float(median_of(message)) if message.any() else None,
        late=late_ranks(late, events, steps),
    )
