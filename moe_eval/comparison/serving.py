"""Two arms under load, from their records: ratios by load point, and what their frontiers show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace

import numpy as np

from moe_eval import stats
from moe_eval.comparison import comparable, frontier, speed
from moe_eval.comparison.frontier import Floats
from moe_eval.evaluators import serving_figures
from moe_eval.frozen import frozen
from moe_eval.records.by_arm import ArmRecords
from moe_eval.records.comparison import PairSchedule
from moe_eval.records.ratios import Interval, Ratio, Sides
from moe_eval.records.samples import Metric
from moe_eval.records.serving import PointServing, ServingMetrics, ServingRecord
from moe_eval.records.serving_comparison import (
    FrontierPoint,
    PointComparison,
    ServingComparison,
    ServingRatios,
    UsersInTime,
)

_SOURCE = "generator"
_TIMES = ("ttft_p50_ms", "e2e_p50_ms", "j_per_tok")  # better where they are less
_MOST_APART = 0.01  # of the tokens of answers: beyond it two arms have not done the same work


@frozen
class _Side:
    """One arm.

    Attributes:
        gpus: 1 where those of either arm are not known.
        figures: by the name of a point, of every load. None of one that failed.
    """

    record: ServingRecord
    gpus: int
    figures: Mapping[str, Sequence[Mapping[str, float | None] | None]]

    @classmethod
    def of(cls, record: ServingRecord, gpus: int) -> _Side:
        """With the figures of every load, once for all that is made of them."""
        figures = {
            point.name: [
                None if load is None else serving_figures.of_load(load, gpus, record.limits) for load in point.loads
            ]
            for point in record.points
        }
        return cls(record, gpus, figures)

    def point(self, name: str) -> PointServing | None:
        return next((point for point in self.record.points if point.name == name), None)

    def value(self, point: PointServing, load: int, figure: str) -> float | None:
        """A figure of one load. None where it failed, or has none."""
        figures = self.figures[point.name][load]
        value = figures[figure] if figures else None
        return value if value is not None and value > 0 else None


def compare(reference: ArmRecords, candidate: ArmRecords) -> ServingComparison | None:
    """An arm's server against the reference's, without verdicts. None where not both were served."""
    before, after = reference.serving, candidate.serving
    if before is None or after is None or not (comparable.measured(before) and comparable.measured(after)):
        return None
    counts = [record.labels.engine.gpus if record.labels.engine else 0 for record in (before, after)]
    counts = counts if all(counts) else [1, 1]
    sides = [_Side.of(record, count) for record, count in zip((before, after), counts, strict=True)]
    one_run = comparable.is_one_run(before, after)
    names = [point.name for point in before.points if sides[1].point(point.name)]
    loads = min((len(_pairs(sides, name)) for name in names), default=0)
    schedule = PairSchedule("alternating", loads, 1, one_run)
    points = [_point(sides, name, schedule) for name in names]
    curves = _Curves.of(sides, names, one_run=one_run)
    return ServingComparison(
        points=tuple(replace(point, at_equal_speed=curves.at_equal_speed(point.name)) for point in points),
        frontier=(_frontier(sides[0]), _frontier(sides[1])),
        limits=before.limits,
        loads=loads,
        one_run=one_run,
        users=curves.users_in_time(before.limits.tpot_ms),
        goodput=_goodput(sides, names, schedule),
        differs=tuple(_differences(sides)),
    )


def _goodput(sides: Sequence[_Side], names: Sequence[str], schedule: PairSchedule) -> Ratio | None:
    """The ratio of the most requests in time at any point, by loads that finished all points."""
    common = sorted(set.intersection(*(set(_pairs(sides, name)) for name in names))) if names else []
    logs: list[list[float]] = []
    for side in sides:
        points = [point for name in names if (point := side.point(name))]
        rates = [max(side.value(point, load, "goodput_req_s") or 0.0 for point in points) for load in common]
        if not rates or min(rates) <= 0:
            return None
        logs.append([math.log(rate) for rate in rates])
    return speed.ratio_of_loads(logs[1], logs[0], _SOURCE, schedule)


def _differences(sides: Sequence[_Side]) -> list[str]:
    """Why the servers did not do the same work, beside what comparable tells."""
    records = [side.record for side in sides]
    tokens = [
        [sum(load.times.output_tokens) / len(load.times.e2e_ms) for load in point.loads if load]
        for record in records
        for point in record.points
    ]
    means = [value for values in tokens for value in values]
    if means and max(means) - min(means) > _MOST_APART * max(means) and _are_fixed(records):
        return [f"Answers had {min(means):.1f} to {max(means):.1f} tokens. Serve both with exact lengths."]
    return []


def _are_fixed(records: Sequence[ServingRecord]) -> bool:
    return not any(point.name.endswith("_mixed") for record in records for point in record.points)


def _pairs(sides: Sequence[_Side], name: str) -> list[int]:
    """The loads that finished a point on both sides."""
    points = [side.point(name) for side in sides]
    both = [point.loads for point in points if point]
    return [load for load, pair in enumerate(zip(*both, strict=False)) if all(pair)] if len(both) == 2 else []


def _point(sides: Sequence[_Side], name: str, schedule: PairSchedule) -> PointComparison:
    before, after = (side.point(name) for side in sides)
    assert before is not None
    assert after is not None
    ratios = {field.name: _ratio(sides, (before, after), field.name, schedule) for field in fields(ServingRatios)}
    return PointComparison(
        name,
        before.point,
        ratios=ServingRatios(**ratios),
        notes={
            side.record.arm: (*point.notes, *point.errors)
            for side, point in zip(sides, (before, after), strict=True)
            if point.notes or point.errors
        },
        figures={
            field.name: Sides(*(_interval(getattr(point.metrics, field.name)) for point in (before, after)))
            for field in fields(ServingMetrics)
            if any(getattr(point.metrics, field.name) for point in (before, after))
        },
    )


def _interval(metric: Metric | None) -> Interval | None:
    return Interval(metric.median, metric.low, metric.high, metric.loads) if metric else None


def _ratio(
    sides: Sequence[_Side], points: tuple[PointServing, PointServing], figure: str, schedule: PairSchedule
) -> Ratio | None:
    """How much better the other arm is, by load as for shapes."""
    name = "output_tok_s_per_gpu" if figure == "output_tok_s" else figure
    logs: list[list[float]] = []
    for side, point in zip(sides, points, strict=True):
        loads = _pairs(sides, point.name) if schedule.one_run else range(len(point.loads))
        values = [side.value(point, load, name) for load in loads if point.loads[load]]
        known_values = [math.log(value) for value in values if value is not None]
        if not known_values or len(known_values) < len(values):
            return None
        logs.append(known_values)
    above, below = logs if figure in _TIMES else logs[::-1]
    return speed.ratio_of_loads(above, below, _SOURCE, schedule)


def _frontier(side: _Side) -> tuple[FrontierPoint, ...]:
    rows = [
        (point.name, per_user.median, rate.median / side.gpus)
        for point in side.record.points
        # at a rate the throughput is what comes
        if point.point.concurrency and (per_user := point.metrics.tok_s_per_user)
        if (rate := point.metrics.output_tok_s)
    ]
    flags = frontier.best([row[1] for row in rows], [row[2] for row in rows])
    return tuple(FrontierPoint(*row, is_best) for row, is_best in zip(rows, flags, strict=True))


@frozen
class _Curves:
    """Both arms at the points that all their common loads finished.

    Attributes:
        names: of the points, by users. `users`: of each.
        per_user, per_gpu: logarithms by side, point and load, float64, shape (2, points, loads).
        one_run: whether load i of one side was measured beside that of the other.
    """

    names: tuple[str, ...]
    users: Floats
    per_user: Floats
    per_gpu: Floats
    one_run: bool

    @classmethod
    def of(cls, sides: Sequence[_Side], names: Sequence[str], *, one_run: bool) -> _Curves:
        """Points with users alone: at a rate the throughput is what comes."""
        pairs = {name: _pairs(sides, name) for name in names}
        points = [side.point(name) for side in sides for name in names]
        users = {point.name: point.point.concurrency for point in points if point and point.point.concurrency}
        chosen = sorted((name for name in names if users.get(name) and pairs[name]), key=lambda name: users[name])
        loads = sorted(set.intersection(*(set(pairs[name]) for name in chosen))) if chosen else []
        arrays = [
            np.array(
                [
                    [
                        [side.value(point, load, figure) or np.nan for load in loads]
                        for name in chosen
                        if (point := side.point(name))
                    ]
                    for side in sides
                ]
            ).reshape(2, len(chosen), len(loads))
            for figure in ("tok_s_per_user", "output_tok_s_per_gpu")
        ]
        numbers = np.array([float(users[name]) for name in chosen])
        per_user, per_gpu = map(np.log, arrays)
        return cls(tuple(chosen), numbers, per_user, per_gpu, one_run)

    @property
    def loads(self) -> int:
        return int(self.per_user.shape[2])

    def _means(self, loads: Sequence[int]) -> tuple[Floats, Floats]:
        """Geometric means over loads, by side and point."""
        return np.exp(self.per_user[:, :, loads].mean(2)), np.exp(self.per_gpu[:, :, loads].mean(2))

    def at_equal_speed(self, name: str) -> Ratio | None:
        """How many times the reference's tokens per GPU the other arm makes, where its users read as fast."""
        if name not in self.names or not self.loads or np.isnan(self.per_user).any():
            return None
        point = self.names.index(name)

        def statistic(loads: Sequence[int]) -> float | None:
            per_user, per_gpu = self._means(loads)
            rate = frontier.per_gpu_at(float(per_user[0, point]), per_user[1], per_gpu[1])
            return None if rate is None else math.log(rate / float(per_gpu[0, point]))

        return self._ratio(statistic)

    def users_in_time(self, limit_ms: float | None) -> UsersInTime | None:
        """How many users each arm serves within a time per token."""
        if limit_ms is None or not self.loads or np.isnan(self.per_user).any():
            return None

        def both(loads: Sequence[int]) -> list[tuple[float | None, bool]]:
            per_user, _ = self._means(loads)
            return [frontier.users_within(limit_ms, self.users, 1000 / per_user[side]) for side in range(2)]

        def statistic(loads: Sequence[int]) -> float | None:
            (before, is_open), (after, is_after_open) = both(loads)
            if before is None or after is None or is_open or is_after_open:
                return None
            return math.log(after / before)

        (before, is_least), (after, is_after_least) = both(range(self.loads))
        return UsersInTime(limit_ms, before, after, (is_least, is_after_least), self._ratio(statistic))

    def _ratio(self, statistic: frontier.Statistic) -> Ratio | None:
        value = statistic(range(self.loads))
        if value is None:
            return None
        estimate = frontier.bootstrapped(statistic, self.loads)
        if estimate is None or self.loads < stats.LEAST_LOADS or not self.one_run:
            return Ratio(math.exp(value), None, None, self.loads, _SOURCE)
        ends = math.exp(estimate.low), math.exp(estimate.high)
        return Ratio(math.exp(value), *ends, self.loads, _SOURCE, estimate.error, estimate.df)
