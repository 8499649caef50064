"""How much loads of an arm scatter on this machine, and which gain a number of them finds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from pathlib import Path

from moe_eval import stats
from moe_eval.errors import UsageError
from moe_eval.evaluators.speed import OF_CALLS, timed_by
from moe_eval.records import by_arm
from moe_eval.records.latency import LatencyRecord
from moe_eval.records.run import LEAST_WARM_UPS, Schedule
from moe_eval.records.shape_latency import ShapeLatency

_ASSUMED = 0.01  # loads of a Qwen3-MoE in BF16 on H100s scattered by 0.15 % (batch 32, 64) to about 1.1 % (batch 1)
_POWER = 0.9
_MOST_RECORDS = 50  # the newest ones


def of_machine(folder: Path, gpu_name: str | None) -> float | None:
    """The standard deviation of a load's own level, relative, by earlier records in a folder and those beside it.

    Args:
        gpu_name: records of another GPU do not count.

    Returns:
        It is pooled over arms and shapes. None without a record of two loads or more.
    """
    patterns = (f"{folder.name}/earlier/*/perf_*.json", "*/perf_*.json")
    files = [file for pattern in patterns for file in folder.resolve().parent.glob(pattern)]
    newest = sorted(files, key=lambda file: file.stat().st_mtime, reverse=True)[:_MOST_RECORDS]
    squares, df = 0.0, 0
    for shape in (shape for file in newest for shape in _shapes(file, gpu_name)):
        logs = [math.log(_median(shape, index)) for index, load in enumerate(shape.loads) if load]
        if len(logs) > 1:
            squares += statistics.variance(logs) * (len(logs) - 1)
            df += len(logs) - 1
    return math.sqrt(squares / df) if df else None


def _shapes(file: Path, gpu_name: str | None) -> Iterator[ShapeLatency]:
    try:
        record = by_arm.read_file(file)
    except (UsageError, OSError):  # it is no record of times, or of another version
        return
    if isinstance(record, LatencyRecord) and record.gpu_name == gpu_name:
        yield from record.shapes


def _median(shape: ShapeLatency, load: int) -> float:
    samples = shape.loads[load]
    return statistics.median(sample.last[timed_by(samples, OF_CALLS)] for sample in samples)


def sentence(schedule: Schedule, comparisons: int, min_gain: float, scatter: float | None) -> str:
    """Which gain the loads of a schedule find.

    Args:
        comparisons: shapes and arms that are compared with the reference.
        scatter: see of_machine. None where it has to be assumed.
    """
    if schedule.loads < stats.LEAST_LOADS:
        return f"a quick look without a verdict, which takes {stats.LEAST_LOADS} loads"
    if schedule.warm_ups < LEAST_WARM_UPS:
        return f"a quick look without a verdict, which takes {LEAST_WARM_UPS} iterations of warm-up"
    level = stats.ERROR_RATE
    if schedule.until_decided:
        level = stats.look_level(schedule.loads, schedule.loads, stats.LEAST_LOADS, level)
    source = "as earlier records of this machine" if scatter is not None else "assumed"
    scatter = _ASSUMED if scatter is None else scatter
    gain = (1 + min_gain) * math.exp(stats.detectable(schedule.loads, scatter, level / comparisons, _POWER))
    count = f"up to {schedule.loads}" if schedule.until_decided else f"{schedule.loads}"
    return (
        f"{count} loads that scatter by {100 * scatter:.2g} % ({source}) find a gain of {gain:.3f}x in "
        f"{10 * _POWER:.0f} of 10 runs, a smaller one less often"
    )
