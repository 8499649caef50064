"""The record of the serving evaluator: how one arm's server answers many users, by load point."""

from __future__ import annotations

from dataclasses import field

from moe_eval.data.served_requests import LoadPoint
from moe_eval.frozen import frozen
from moe_eval.machine.sampler import GpuSummary
from moe_eval.records.labels import ArmLabels, Origin, Status
from moe_eval.records.latency import WorkloadLabel
from moe_eval.records.samples import Metric

SERVING_SCHEMA = 2


@frozen
class ServingLimits:
    """What a user waits for at most, in ms: for the first token, and for every later one. None for no limit."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None

    @property
    def is_set(self) -> bool:
        """Whether there is one."""
        return self.ttft_ms is not None or self.tpot_ms is not None


@frozen
class RequestTimes:
    """The measured requests of one load of a point, in the order in which they were sent. One number for each.

    Attributes:
        started_s: when it was sent, since the first one.
        ttft_ms: until the first token. `e2e_ms`: until the last one.
        input_tokens, output_tokens: as the server counted them.
    """

    started_s: tuple[float, ...]
    ttft_ms: tuple[float, ...]
    e2e_ms: tuple[float, ...]
    input_tokens: tuple[int, ...]
    output_tokens: tuple[int, ...]


@frozen
class ServerState:
    """What a server said of itself at its metrics endpoint while a point was measured. None where it does not say.

    Attributes:
        running, waiting: requests in a step and before one, mean over samples. `_most`: the most of them.
        kv_cache_share: the most of the key-value cache in use, 0 to 1.
        cached_share: of the tokens of prompts, those that came from the prefix cache, 0 to 1.
        preemptions: requests that lost their place in the cache and were computed again.
        steps: that the figures are of, where the server tells of steps and not of moments.
        why_not: why nothing is known.
    """

    running: float | None = None
    running_most: float | None = None
    waiting: float | None = None
    waiting_most: float | None = None
    kv_cache_share: float | None = None
    cached_share: float | None = None
    preemptions: float | None = None
    steps: int | None = None
    why_not: str | None = None


@frozen
class ServedLoad:
    """One point in one load of an arm.

    Attributes:
        started, ended: of the measured requests, on `time.perf_counter`, in seconds.
        gpus: what NVML saw meanwhile.
        generator: the tool that sent the requests, with its version. `folder`: of what it wrote, beside the record.
    """

    times: RequestTimes
    state: ServerState
    started: float
    ended: float
    generator: str
    folder: str
    gpus: tuple[GpuSummary, ...] = ()


@frozen
class ServingMetrics:
    """The figures of one point. None where there is nothing to tell.

    Attributes:
        output_tok_s: of all users together. output_tok_s_per_gpu: None where the GPUs are none or not known.
        tok_s_per_user: 1000 over the median time per token of requests: how fast one user reads. None where answers
            come as a whole.
        ttft_p50_ms ... e2e_p99_ms: quantiles over requests. p99 only with enough of them, see serving_figures.ENOUGH.
        goodput_req_s: requests per second that kept every limit. None without a limit.
        j_per_tok: joules of all GPUs of the arm per output token.
    """

    output_tok_s: Metric | None = None
    output_tok_s_per_gpu: Metric | None = None
    tok_s_per_user: Metric | None = None
    ttft_p50_ms: Metric | None = None
    ttft_p90_ms: Metric | None = None
    ttft_p99_ms: Metric | None = None
    tpot_p50_ms: Metric | None = None
    tpot_p90_ms: Metric | None = None
    tpot_p99_ms: Metric | None = None
    e2e_p50_ms: Metric | None = None
    e2e_p90_ms: Metric | None = None
    e2e_p99_ms: Metric | None = None
    goodput_req_s: Metric | None = None
    j_per_tok: Metric | None = None


@frozen
class PointServing:
    """One load point of one arm.

    Attributes:
        name: of the point and its lengths, such as `c8_i512_o128`, or `c8_mixed` with lengths of a file.
        loads: of the arm, in order. One that failed is None.
        errors: why loads failed, each reason once.
        notes: what a reader of the figures has to know.
    """

    name: str
    point: LoadPoint
    metrics: ServingMetrics
    loads: tuple[ServedLoad | None, ...]
    errors: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@frozen
class ServingRecord:
    """One arm under load, with all its labels.

    Attributes:
        precision: what the kernels compute in. `precision_planned`: that was asked for.
        workload: the digest of the requests, and how they were made.
        prefix_caching: whether prompts that begin alike were computed once. None for an endpoint, which is driven as
            it is.
    """

    arm: str
    precision: str
    precision_planned: str
    status: Status
    error: str | None = None
    gpu_name: str | None = None
    sm_version: str | None = None
    engine: str | None = None
    moe_backend: str | None = None
    workload: WorkloadLabel | None = None
    limits: ServingLimits = field(default_factory=ServingLimits)
    prefix_caching: bool | None = False
    points: tuple[PointServing, ...] = ()
    labels: ArmLabels = field(default_factory=ArmLabels)
    origin: Origin = field(default_factory=Origin)
    schema: int = SERVING_SCHEMA
