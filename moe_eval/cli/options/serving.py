"""Options for how servers are driven."""

from __future__ import annotations

from pathlib import Path

from moe_eval.cli.options.evaluators import SERVED
from moe_eval.cli.options.option import option
from moe_eval.frozen import frozen

_SERVING = "serving"


@frozen(kw_only=True)
class ServingOptions:
    """How servers are driven."""

    concurrency: tuple[int, ...] = option(
        (),
        "users at once, each of whom waits for an answer before the next request. 0 for none, with --request_rate. "
        "Without it 1, 2, 4 and so on, until more users add nothing",
        _SERVING,
        metavar="N,...",
        minimum=0,
        maximum=10_000,
        needs=SERVED,
    )
    request_rate: tuple[float, ...] = option(
        (), "requests per second, which arrive at random (Poisson)", _SERVING, metavar="RATE,...", needs=SERVED
    )
    num_requests: int = option(
        100, "requests of each point, at least. There are 10 of every user too", _SERVING, minimum=1, needs=SERVED
    )
    lengths: Path | None = option(
        None,
        "JSON lines with input_length and output_length, in place of --input_len and --output_len",
        _SERVING,
        metavar="FILE",
        needs=SERVED,
    )
    ttft_ms: float | None = option(
        None, "a user waits so long for the first token at most, for goodput", _SERVING, metavar="MS", needs=SERVED
    )
    tpot_ms: float | None = option(
        None,
        "a user waits so long for every later token at most, for goodput and users in time",
        _SERVING,
        metavar="MS",
        needs=SERVED,
    )
    prefix_caching: bool = option(False, "let servers compute what prompts begin with once", _SERVING, needs=SERVED)
    port: int | None = option(
        None, "of the arms' servers. Without it a free one", _SERVING, minimum=1, maximum=65535, needs=SERVED
    )
