"""The record of one arm under load, made from what its servers did at every point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from moe_eval.data.served_requests import LoadPoint, RequestSet
from moe_eval.evaluators import serving_figures
from moe_eval.frozen import frozen
from moe_eval.machine.hardware import Gpu
from moe_eval.records.labels import ArmLabels, Origin, Status
from moe_eval.records.latency import WorkloadLabel
from moe_eval.records.serving import PointServing, ServedLoad, ServingLimits, ServingMetrics, ServingRecord


@frozen
class Served:
    """What was measured of an arm.

    Attributes:
        loads: by point, in order, None for one that failed. `errors`: why, None for one that did not.
        minimum: requests of a point. `is_mixed`: their lengths differ.
        gpus: of the arm.
    """

    arm: str
    precision: str
    loads: Mapping[LoadPoint, Sequence[ServedLoad | None]]
    errors: Mapping[LoadPoint, Sequence[str | None]]
    requests: RequestSet
    minimum: int
    is_mixed: bool
    limits: ServingLimits
    prefix_caching: bool | None
    labels: ArmLabels
    gpus: tuple[Gpu, ...]


def record(served: Served, origin: Origin) -> ServingRecord:
    """One arm's record."""
    engine = served.labels.engine
    errors = [error for reasons in served.errors.values() for error in reasons if error]
    return ServingRecord(
        arm=served.arm,
        precision=engine.precision if engine else served.precision,
        precision_planned=served.precision,
        status=Status.FAILED if errors else Status.FINISHED,
        error=errors[0] if errors else None,
        gpu_name=served.gpus[0].name if served.gpus else None,
        sm_version=served.gpus[0].capability if served.gpus else None,
        engine=engine.name if engine else None,
        moe_backend=engine.moe_backend_observed if engine else None,
        workload=WorkloadLabel(served.requests.digest, served.requests.source),
        limits=served.limits,
        prefix_caching=served.prefix_caching,
        points=_saturated([_point(served, point) for point in served.loads]),
        labels=served.labels,
        origin=origin,
    )


def _saturated(points: Sequence[PointServing]) -> tuple[PointServing, ...]:
    """The points, with a note on the first one whose users add little to the throughput, or that there is none."""
    rates = {
        at: (users, rate.median)
        for at, point in enumerate(points)
        if (users := point.point.concurrency) and (rate := point.metrics.output_tok_s)
    }
    steps = ((rates[before], rates[at], at) for before, at in pairwise(rates))
    saturated = (
        at
        for (users, rate), (more_users, more_rate), at in steps
        if serving_figures.is_saturated(rate, more_rate, more_users / users)
    )
    first = next(saturated, None)
    if len(rates) < 2:
        return tuple(points)
    place = max(rates) if first is None else first
    added = f"{100 * serving_figures.ADDED:g} %"
    note = f"the server is not saturated: up to here twice the users added {added} or more to its tokens per second"
    if first is not None:
        note = f"the server is saturated: twice the users add less than {added} to its tokens per second"
    return tuple(
        replace(point, notes=(*point.notes, note)) if at == place else point for at, point in enumerate(points)
    )


def name_of(point: LoadPoint, requests: RequestSet, *, is_mixed: bool) -> str:
    """A point with the lengths of its requests, such as `c8_i512_o128`. `is_mixed`: they differ."""
    first = requests.requests[0]
    return f"{point.name}_mixed" if is_mixed else f"{point.name}_i{len(first.prompt)}_o{first.output_len}"


def _point(served: Served, point: LoadPoint) -> PointServing:
    loads = served.loads[point]
    finished = [load for load in loads if load is not None]
    gpus = served.labels.engine.gpus if served.labels.engine else 0
    notes: list[str] = []
    if finished:
        measured = served.requests.requests[point.warm_up :][: point.requests(served.minimum)]
        notes = serving_figures.notes(finished, [request.output_len for request in measured])
        notes += [] if point.request_rate is None else serving_figures.overload(finished)
    return PointServing(
        name=name_of(point, served.requests, is_mixed=served.is_mixed),
        point=point,
        metrics=serving_figures.metrics(finished, gpus, served.limits) if finished else ServingMetrics(),
        loads=tuple(loads),
        errors=tuple(dict.fromkeys(error for error in served.errors[point] if error)),
        notes=tuple(notes),
    )
