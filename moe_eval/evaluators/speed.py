"""The figures of timed iterations, and two arms compared: pure functions over samples."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from moe_eval import stats
from moe_eval.data.workload import Shape
from moe_eval.errors import UsageError
from moe_eval.evaluators.latency import DISAGREEMENT, Sample

# the same name, unit and direction as the metric keys of the tracker: speed/SHAPE/NAME
METRICS = ("ttft_ms", "tpot_ms", "e2e_ms", "output_tok_s", "prefill_tok_s", "j_per_tok")
# where several sources time the same thing the first of these counts: what the GPU's own clock says of whole calls,
# what the engine says of the moments within one call
_OF_CALLS = ("cuda_events", "host")
_OF_TOKENS = ("engine", "cuda_events", "host")


def figures(samples: Sequence[Sample], shape: Shape) -> dict[str, Any]:
    """One arm's figures for one shape.

    With b sequences of i tokens and n new ones each, of every sample:
        ttft: until the last sequence of the batch has its first token; e2e: until all are complete.
        tpot = (e2e - ttft) / (n - 1), both by the same source; None where n is 1, and where that is no time of any one
        sample, since two calls that noise turns round say nothing of the others' difference either.
        output_tok_s = b n / e2e; prefill_tok_s = b i / ttft; j_per_tok = joules of the whole call / (b n), so prefill
        is part of it.

    Returns:
        `metrics`: for each of METRICS its median, the interval of the median (stats.median_interval), the source and
        the samples; None where there is nothing to tell.
        `mean_latency_ms`, `std_latency_ms`: of e2e. `sources`: medians in ms by source.
        `request_ttft_ms`: the median over requests, from engines that time them.
        `notes`: sources that disagree by more than DISAGREEMENT, and why there is no tpot.
    """
    calls = _present(samples, _OF_CALLS)
    tokens = _present(samples, _OF_TOKENS)
    everywhere = [name for name in samples[0].last if all(name in each.last for each in samples)]
    sources = {name: _by_source(samples, name, shape) for name in everywhere}
    e2e = [each.last[calls] for each in samples]
    b, i, n = shape.batch_size, shape.input_len, shape.output_len
    metrics = {
        "ttft_ms": _metric(sources[tokens]["ttft_ms"], tokens),
        "tpot_ms": _metric(sources[tokens]["tpot_ms"], tokens) if sources[tokens]["tpot_ms"] else None,
        "e2e_ms": _metric(sources[calls]["e2e_ms"], calls),
        "output_tok_s": _metric([b * n / each for each in e2e], calls),
        "prefill_tok_s": _metric([1000 * b * i / each for each in sources[tokens]["ttft_ms"]], tokens),
        "j_per_tok": None,
    }
    if all(each.energy_j is not None for each in samples):
        metrics["j_per_tok"] = _metric([(each.energy_j or 0) / (b * n) for each in samples], "nvml")
    requests = [each.request_first for each in samples if each.request_first is not None]
    return {
        "metrics": metrics,
        "mean_latency_ms": 1000 * statistics.fmean(e2e),
        "std_latency_ms": 1000 * statistics.stdev(e2e) if len(e2e) > 1 else None,
        "sources": {
            name: {metric: statistics.median(values) for metric, values in found.items() if values}
            for name, found in sources.items()
        },
        "request_ttft_ms": 1000 * statistics.median(requests) if requests else None,
        "notes": _disagreements(sources) + _partial(samples, sources) + _too_short(samples, tokens, n),
    }


def _no_decoding(sample: Sample, source: str) -> bool:
    """Whether a source says that all tokens took no longer than the first: then their difference is no time."""
    return sample.last[source] <= sample.first[source]


def _too_short(samples: Sequence[Sample], source: str, output_len: int) -> list[str]:
    count = sum(_no_decoding(each, source) for each in samples)
    if output_len == 1 or not count:
        return []
    return [
        f"no time per token: by {source}, {count} of {len(samples)} iterations took no longer for {output_len} tokens "
        "than for the first alone, so noise is larger than the decoding (TTFT may be above e2e); give more output "
        "tokens"
    ]


def _present(samples: Sequence[Sample], order: Sequence[str]) -> str:
    return next(name for name in order if all(name in each.last for each in samples))


def _partial(samples: Sequence[Sample], told: Mapping[str, Any]) -> list[str]:
    """Sources that only some samples have."""
    names = sorted({name for each in samples for name in each.last} - set(told))
    return [
        f"{name} timed {sum(name in each.last for each in samples)} of {len(samples)} iterations and is left out"
        for name in names
    ]


def _by_source(samples: Sequence[Sample], source: str, shape: Shape) -> dict[str, list[float]]:
    """Milliseconds of every sample by one source; none for each token where they would be no times."""
    first = [1000 * each.first[source] for each in samples]
    last = [1000 * each.last[source] for each in samples]
    steps = 0 if any(_no_decoding(each, source) for each in samples) else shape.output_len - 1
    return {
        "ttft_ms": first,
        "tpot_ms": [(b - a) / steps for a, b in zip(first, last, strict=True)] if steps else [],
        "e2e_ms": last,
    }


def _metric(values: Sequence[float], source: str) -> dict[str, Any]:
    interval = stats.median_interval(values)
    return {
        "median": statistics.median(values),
        "low": interval[0] if interval else None,
        "high": interval[1] if interval else None,
        "source": source,
        "samples": list(values),
    }


def _disagreements(sources: Mapping[str, Mapping[str, Sequence[float]]]) -> list[str]:
    notes = []
    # one measures a call that ends with the first token, the other the first token of a call that goes on
    apart = {"ttft_ms": " (a call for one token, and the first of many)"}
    for metric in ("ttft_ms", "e2e_ms"):
        for one, two in _pairs(sources):
            a, b = (statistics.median(sources[name][metric]) for name in (one, two))
            if abs(a / b - 1) > DISAGREEMENT:
                why = apart.get(metric, "") if "engine" in (one, two) else ""
                notes.append(
                    f"{metric} is {a:.2f} by {one} and {b:.2f} by {two}, more than {100 * DISAGREEMENT:g} % apart{why}"
                )
    return notes


def _pairs(sources: Collection[str]) -> list[tuple[str, str]]:
    """Which sources are held against each other: both clocks of whole calls, and the better one with the engine's."""
    clock = next(name for name in _OF_CALLS if name in sources)
    found = [("host", clock)] if clock != "host" else []
    return [*found, (clock, "engine")] if "engine" in sources else found


def steps_apart(engines: Sequence[Mapping[str, Any]], shape: Shape, names: tuple[str, str]) -> str | None:
    """Why two engines that read a shape's prompts over different numbers of steps cannot be compared at it.

    Args:
        engines: facts of both as records have them.
        names: of the arms.
    """
    tokens = shape.batch_size * shape.input_len
    budgets = [each.get("max_step_tokens") for each in engines]
    one, two = (math.ceil(tokens / each) if each else 1 for each in budgets)
    if one == two:
        return None
    return (
        f"{names[0]} reads {tokens} prompt tokens over {one} steps and {names[1]} over {two}: their engines read "
        f"{budgets[0] or 'any number of'} and {budgets[1] or 'any number of'} tokens a step; give both the same limit"
    )


_READERS: dict[str, Callable[[Sample, str, Shape], float]] = {
    "e2e_ms": lambda sample, source, _: sample.last[source],
    "ttft_ms": lambda sample, source, _: sample.first[source],
    "tpot_ms": lambda sample, source, shape: (
        (sample.last[source] - sample.first[source]) / max(shape.output_len - 1, 1)
    ),
}


def compare(
    reference: Sequence[Sequence[Sample]], other: Sequence[Sequence[Sample]], shape: Shape
) -> dict[str, dict[str, Any] | None]:
    """How much faster another arm is than the reference, by metric.

    Args:
        reference, other: samples of one shape in the same blocks.

    Returns:
        For e2e_ms, ttft_ms and tpot_ms the ratio reference / other (above 1: the other is faster) with `low` and `high`
        from stats.block_ratio, and the number of blocks. Without a second block there is a ratio and no interval; None
        where no block was measured on both sides or there is no such time.
    """
    pairs = [(a, b) for a, b in zip(reference, other, strict=False) if a and b]
    found: dict[str, dict[str, Any] | None] = dict.fromkeys(_READERS)
    if not pairs:
        return found
    for metric, read in _READERS.items():
        if metric == "tpot_ms" and shape.output_len == 1:
            continue
        order = _OF_CALLS if metric == "e2e_ms" else _OF_TOKENS
        source = _present([sample for pair in pairs for block in pair for sample in block], order)
        above = [[read(sample, source, shape) for sample in a] for a, _ in pairs]
        below = [[read(sample, source, shape) for sample in b] for _, b in pairs]
        if min(map(min, [*above, *below])) <= 0:  # a difference of two calls that are too short to tell apart
            continue
        bounds: dict[str, float | None]
        try:
            ratio = stats.block_ratio(above, below)
            bounds = {"value": ratio.value, "low": ratio.low, "high": ratio.high}
        except UsageError:
            bounds = {"value": statistics.median(above[0]) / statistics.median(below[0]), "low": None, "high": None}
        found[metric] = {**bounds, "blocks": len(pairs), "source": source}
    return found
