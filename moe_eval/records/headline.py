"""What a comparison says in one line and a few figures: its header, and the headlines of every pair."""

from __future__ import annotations

from enum import Enum

from moe_eval.frozen import frozen


class HeadlineFigure(str, Enum):
    """A figure that stands at the top, in this order."""

    SPEED_UP = "speed_up"
    OUTPUT_TOK_S_PER_GPU = "output_tok_s_per_gpu"
    TTFT_MS = "ttft_ms"
    QUALITY = "quality"
    MEMORY_GIB = "memory_gib"
    J_PER_TOK = "j_per_tok"
    USERS_IN_TIME = "users_in_time"
    SERVED_TOK_S = "served_tok_s"


@frozen
class Header:
    """What was compared, where and when.

    Attributes:
        models, gpus, engines: of all arms, without repetition. A model is the last part of a checkpoint's name. A GPU
            has its count before it where an arm has several. An engine has its version.
        started: of the first run, UTC, ISO 8601. None where no run is known.
        run_id: of the first run. None where no run is known.
        random_weights: whether some arm had random weights.
        emulated: whether some arm was emulated.
    """

    models: tuple[str, ...] = ()
    gpus: tuple[str, ...] = ()
    engines: tuple[str, ...] = ()
    started: str | None = None
    run_id: str | None = None
    random_weights: bool = False
    emulated: bool = False


@frozen
class Headline:
    """A figure of a pair that stands at the top.

    Attributes:
        shape: that it is of: the one that decides the pair's verdict. None where the figure has no shape.
        reference, value: of both arms, in the unit that the figure's name ends with. `speed_up` has the time that
            decides in ms, `quality` the perplexity by token, `memory_gib` the weights on each GPU.
        shape of `served_tok_s`: the load point with the most users. It has tokens per second, per GPU where those are
            known.
        ratio: how many times better the other arm is, above 1 where it is better: faster, more tokens, less memory or
            energy. Of `quality` the other perplexity over the reference's, above 1 where it is worse.
        low, high: its interval. None where there is none.
        verdict: the word of Verdict or QualityVerdict on the ratio, by Holm's procedure over all shapes and arms of
            this figure. None where it has none: memory is not estimated from samples.
    """

    figure: HeadlineFigure
    shape: str | None
    reference: float | None
    value: float | None
    ratio: float | None
    low: float | None = None
    high: float | None = None
    verdict: str | None = None
