"""Two arms under load: ratios and verdicts by load point, their frontiers, and the users that each serves in time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

from moe_eval.data.served_requests import LoadPoint
from moe_eval.frozen import frozen
from moe_eval.records.ratios import Ratio, Sides
from moe_eval.records.serving import ServingLimits
from moe_eval.records.verdicts import Verdict


@frozen
class ServingRatios:
    """How much better the other arm is by figure, above 1 where it is. None where a side does not have it.

    Attributes:
        output_tok_s: per GPU where the GPUs of both are known.
    """

    output_tok_s: Ratio | None = None
    tok_s_per_user: Ratio | None = None
    ttft_p50_ms: Ratio | None = None
    e2e_p50_ms: Ratio | None = None
    goodput_req_s: Ratio | None = None
    j_per_tok: Ratio | None = None

    def deciding(self, point: LoadPoint) -> Ratio | None:
        """What decides: throughput of so many users, and the time of a request where their rate is given."""
        return self.e2e_p50_ms if point.concurrency is None else self.output_tok_s


@frozen
class PointComparison:
    """Two arms at one load point.

    Attributes:
        at_equal_speed: how many times the tokens per second and GPU the other arm makes at the reference's tokens per
            second and user, interpolated on its frontier. None where that is beyond it.
        figures: of both arms, by the names of ServingMetrics. `notes`: of the measurement, by arm.
    """

    name: str
    point: LoadPoint
    verdict: Verdict = Verdict.OPEN
    reason: str = ""
    ratios: ServingRatios = field(default_factory=ServingRatios)
    at_equal_speed: Ratio | None = None
    figures: Mapping[str, Sides] = field(default_factory=dict)
    notes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@frozen
class FrontierPoint:
    """A load point of one arm: tokens per second of a user, and of a GPU. `is_best`: no other is better in both."""

    name: str
    tok_s_per_user: float
    tok_s_per_gpu: float
    is_best: bool


@frozen
class UsersInTime:
    """How many users each arm serves within --tpot_ms a token, by its median, interpolated between points.

    Attributes:
        reference, other: None where not even the fewest users are served in time. `are_least`: all points are, so
            that there may be more.
        ratio: other over reference. None where a side is not known.
    """

    tpot_ms: float
    reference: float | None
    other: float | None
    are_least: tuple[bool, bool]
    ratio: Ratio | None = None


@frozen
class ServingComparison:
    """An arm's server against the reference's.

    Attributes:
        verdict: slower where a point is, else it pays where a point does, else open where one is.
        sentence: the same in whole sentences, with the load from which on it pays.
        frontier: the points of both arms, reference first.
        users: None without --tpot_ms.
        goodput: how many times the requests per second in time the other arm serves, each where it serves most. None
            without a limit, or where none is served in time.
        loads: that finished on both sides, at the point that has fewest.
        differs: why the two cannot be compared, a sentence each.
        one_run: whether one run measured both side by side.
    """

    points: tuple[PointComparison, ...]
    frontier: tuple[tuple[FrontierPoint, ...], tuple[FrontierPoint, ...]]
    limits: ServingLimits
    loads: int
    users: UsersInTime | None = None
    goodput: Ratio | None = None
    verdict: Verdict = Verdict.OPEN
    sentence: str = ""
    differs: tuple[str, ...] = ()
    one_run: bool = True
