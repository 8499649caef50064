"""Loads of servers whose figures have a closed form: users in lock step, whose requests take one time each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from moe_eval.data.served_requests import LoadPoint, RequestSet, ServedRequest
from moe_eval.evaluators import serving_record
from moe_eval.evaluators.serving_record import Served
from moe_eval.machine.hardware import Gpu
from moe_eval.records.labels import ArmLabels, ArmSettings, EngineFacts, Origin
from moe_eval.records.serving import RequestTimes, ServedLoad, ServerState, ServingLimits, ServingRecord

INPUT, OUTPUT = 8, 11
STATE = ServerState(running=3.0, running_most=4.0, waiting=1.0, kv_cache_share=0.25, preemptions=0.0)


def load(
    count: int, users: int, *, tpot_ms: float, ttft_ms: float = 100.0, output: int = OUTPUT, folder: str = "f"
) -> ServedLoad:
    """`count` requests by so many users, each of whom sends the next when the last has ended."""
    e2e_ms = ttft_ms + (output - 1) * tpot_ms
    rounds = [number // users for number in range(count)]
    times = RequestTimes(
        started_s=tuple(turn * e2e_ms / 1000 for turn in rounds),
        ttft_ms=(ttft_ms,) * count,
        e2e_ms=(e2e_ms,) * count,
        input_tokens=(INPUT,) * count,
        output_tokens=(output,) * count,
    )
    return ServedLoad(times, STATE, 0.0, (max(rounds) + 1) * e2e_ms / 1000, "aiperf 0.13.0", folder)


def record(
    arm: str,
    tpot_ms: Mapping[int, Sequence[float | None]],
    facts: EngineFacts,
    *,
    limits: ServingLimits = ServingLimits(),  # noqa: B008
    gpus: Sequence[Gpu] = (),
    run_id: str | None = "0" * 32,
    digest: str = "d" * 16,
    output: int = OUTPUT,
    settings: ArmSettings | None = None,
) -> ServingRecord:
    """An arm's record, whose first tokens take as long as later ones. `tpot_ms`: by users, of every load.

    None where it failed.
    """
    points = {users: LoadPoint(users) for users in tpot_ms}
    requests = (ServedRequest(tuple(range(INPUT)), OUTPUT),) * 10_000
    served = Served(
        arm=arm,
        precision=facts.precision,
        loads={
            points[users]: [
                None if ms is None else load(10 * users, users, tpot_ms=ms, ttft_ms=ms, output=output) for ms in loads
            ]
            for users, loads in tpot_ms.items()
        },
        errors={
            points[users]: ["the server ended" if ms is None else None for ms in loads]
            for users, loads in tpot_ms.items()
        },
        requests=RequestSet(requests, "made up", 1, digest),
        minimum=1,
        is_mixed=False,
        limits=limits,
        prefix_caching=False,
        labels=ArmLabels(facts),
        gpus=tuple(gpus),
    )
    return serving_record.record(served, Origin(run_id, arm=settings))
