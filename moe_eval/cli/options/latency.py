"""Options for what is timed and traced, and by which profiler."""

from __future__ import annotations

from typing import Literal

from moe_eval.cli.options.evaluators import LOADED, MADE, RUN, TIMED, TRACED
from moe_eval.cli.options.option import option
from moe_eval.cli.options.quality import TextOptions
from moe_eval.frozen import frozen
from moe_eval.records.run import LEAST_WARM_UPS

LATENCY = "latency and kernels"
_LEAST_LOADS = 3  # of a verdict: that of `stats`, which takes scipy a second to import
_MOST_LOADS = 1000
_UNTIL = ("until", "decided")


@frozen(kw_only=True)
class LatencyOptions(TextOptions):
    """What is timed and traced."""

    batch_size: tuple[int, ...] = option(
        (1,), "one batch size or several, such as 1,8,32", LATENCY, metavar="N,...", needs=RUN
    )
    output_len: int = option(256, "tokens that every sequence makes", LATENCY, needs=MADE)
    num_iterations: int = option(
        20,
        "timed iterations of each arm and shape, at least, spread over --loads",
        LATENCY,
        minimum=1,
        needs=TIMED,
    )
    warmup_iterations: int = option(
        LEAST_WARM_UPS,
        "iterations before the first timed one, at least. More run until they settle. "
        f"Fewer than {LEAST_WARM_UPS} are all, for a quick look without a verdict",
        LATENCY,
        minimum=1,
        needs=TIMED,
    )
    loads: int = option(
        4,
        f"times that each arm is loaded. Fewer than {_LEAST_LOADS} are a quick look without a verdict",
        LATENCY,
        minimum=1,
        maximum=_MOST_LOADS,
        needs=LOADED,
    )
    until: Literal["decided"] | None = option(None, "load again until every verdict is decided", LATENCY, needs=TIMED)
    max_loads: int = option(
        8, "with --until: load no more often", LATENCY, minimum=_LEAST_LOADS, maximum=_MOST_LOADS, needs=_UNTIL
    )
    max_minutes: float | None = option(
        None, "with --until: begin no load after so many minutes", LATENCY, minimum=1, needs=_UNTIL
    )
    aa: bool = option(False, "measure the first arm a second time as well, as a check", LATENCY)
    seed: int = option(0, "of --dataset random", LATENCY, minimum=0, needs=("dataset", "random"))


@frozen(kw_only=True)
class ProfilerOptions:
    """Which profiler traces kernels."""

    profiler: Literal["auto", "nsys", "torch"] = option(
        "auto",
        "what traces kernels. auto: nsys where it is on PATH and there is a GPU, else torch",
        LATENCY,
        needs=TRACED,
    )
    nsys_args: str = option(
        "",
        "more options of nsys profile, in place of ours of the same name",
        LATENCY,
        metavar='"--OPTION ..."',
        is_verbatim=True,
        needs=TRACED,
    )
    keep_report: bool = option(
        False,
        "keep raw reports of nsys beside traces. They hold the environment and what was printed, with secrets",
        LATENCY,
        needs=TRACED,
    )
