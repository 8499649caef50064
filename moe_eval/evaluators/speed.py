"""The figures of timed iterations: pure functions over samples."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from itertools import accumulate

from moe_eval import stats
from moe_eval.data.workload import Shape
from moe_eval.frozen import frozen
from moe_eval.records.samples import LatencyFigures, LatencyMetrics, Metric, Sample, SourceMedians

DISAGREEMENT = 0.02  # sources that differ by more than this get a note
METRICS = tuple(metric.name for metric in fields(LatencyMetrics))
# where several sources time the same thing the first of these counts: what the GPU's own clock says of whole calls,
# what the engine says of the moments within one call
OF_CALLS = ("cuda_events", "host")
OF_TOKENS = ("engine", "cuda_events", "host")


@frozen
class _Times:
    """Milliseconds of every sample by one source. `tpot_ms` is empty where they would be no times."""

    ttft_ms: list[float]
    tpot_ms: list[float]
    e2e_ms: list[float]


def figures(loads: Sequence[Sequence[Sample]], shape: Shape) -> LatencyFigures:
    """One arm's figures for one shape, each with its interval by load, or of one load by iteration.

    Args:
        loads: the samples of every load, none of them empty.

    With b sequences of i tokens and n new ones each, of every sample:
        ttft: until the last sequence of the batch has its first token. e2e: until all are complete.
        tpot = (e2e - ttft) / (n - 1), both by the same source. It is None where n is 1, and where that is no time of
        any one sample: calls that noise turns round say nothing of the others' difference either.
        output_tok_s = b n / e2e. prefill_tok_s = b i / ttft. j_per_tok = joules of the whole call / (b n), so prefill
        is part of it.

    The notes name sources that disagree by more than DISAGREEMENT, and why there is no tpot.
    """
    samples = [sample for load in loads for sample in load]
    sizes = [len(load) for load in loads]
    calls = timed_by(samples, OF_CALLS)
    tokens = timed_by(samples, OF_TOKENS)
    everywhere = [source for source in samples[0].last if all(source in sample.last for sample in samples)]
    times = {source: _times(samples, source, shape) for source in everywhere}
    e2e = [sample.last[calls] for sample in samples]
    b, i, n = shape.batch_size, shape.input_len, shape.output_len
    joules = [sample.energy_j for sample in samples if sample.energy_j is not None]
    metrics = LatencyMetrics(
        ttft_ms=metric(sizes, times[tokens].ttft_ms, tokens),
        tpot_ms=metric(sizes, times[tokens].tpot_ms, tokens) if times[tokens].tpot_ms else None,
        e2e_ms=metric(sizes, times[calls].e2e_ms, calls),
        output_tok_s=metric(sizes, [b * n / seconds for seconds in e2e], calls),
        prefill_tok_s=metric(sizes, [1000 * b * i / ms for ms in times[tokens].ttft_ms], tokens),
        j_per_tok=metric(sizes, [energy / (b * n) for energy in joules], "nvml")
        if len(joules) == len(samples)
        else None,
    )
    requests = [sample.request_first for sample in samples if sample.request_first is not None]
    return LatencyFigures(
        metrics=metrics,
        mean_latency_ms=1000 * statistics.fmean(e2e),
        std_latency_ms=1000 * statistics.stdev(e2e) if len(e2e) > 1 else None,
        sources={source: _medians(by_source) for source, by_source in times.items()},
        request_ttft_ms=1000 * statistics.median(requests) if requests else None,
        notes=(*_disagreements(times), *_partial(samples, times), *_too_short(samples, tokens, n)),
    )


def timed_by(samples: Sequence[Sample], order: Sequence[str]) -> str:
    """The first of these sources that timed every sample."""
    return next(source for source in order if all(source in sample.last for sample in samples))


def _no_decoding(sample: Sample, source: str) -> bool:
    """Whether a source says that all tokens took no longer than the first: then their difference is no time."""
    return sample.last[source] <= sample.first[source]


def _too_short(samples: Sequence[Sample], source: str, output_len: int) -> list[str]:
    count = sum(_no_decoding(sample, source) for sample in samples)
    if output_len == 1 or not count:
        return []
    return [
        f"no time per token: by {source}, {count} of {len(samples)} iterations took no longer for {output_len} tokens "
        "than for the first alone, so noise is larger than the decoding (TTFT may be above e2e). Give more output "
        "tokens"
    ]


def _partial(samples: Sequence[Sample], complete: Collection[str]) -> list[str]:
    """Sources that only some samples have."""
    names = sorted({source for sample in samples for source in sample.last} - set(complete))
    return [
        f"{source} timed {sum(source in sample.last for sample in samples)} of {len(samples)} iterations and is left "
        "out"
        for source in names
    ]


def _times(samples: Sequence[Sample], source: str, shape: Shape) -> _Times:
    first = [1000 * sample.first[source] for sample in samples]
    last = [1000 * sample.last[source] for sample in samples]
    steps = 0 if any(_no_decoding(sample, source) for sample in samples) else shape.output_len - 1
    tpot = [(end - start) / steps for start, end in zip(first, last, strict=True)] if steps else []
    return _Times(first, tpot, last)


def _medians(times: _Times) -> SourceMedians:
    tpot = statistics.median(times.tpot_ms) if times.tpot_ms else None
    return SourceMedians(statistics.median(times.ttft_ms), statistics.median(times.e2e_ms), tpot)


def metric(sizes: Sequence[int], values: Sequence[float], source: str) -> Metric:
    """A metric of loads with so many values each, in order, with its interval by load, or by value of one load."""
    ends = list(accumulate(sizes))
    medians = [statistics.median(values[end - size : end]) for size, end in zip(sizes, ends, strict=True)]
    if len(sizes) == 1:
        low, high = stats.median_interval(values) or (None, None)
        return Metric(medians[0], low, high, source, tuple(values))
    if min(medians) <= 0:
        return Metric(statistics.median(medians), None, None, source, tuple(values), len(sizes))
    logs = stats.mean_interval([math.log(median) for median in medians])
    low, high = math.exp(logs.low), math.exp(logs.high)
    return Metric(math.exp(logs.value), low, high, source, tuple(values), len(sizes))


def _disagreements(times: Mapping[str, _Times]) -> list[str]:
    notes = []
    # a clock measures a call that ends with the first token, the engine the first token of a call that goes on
    calls_differ = " (a call for one token, and the first of many)"
    for name in ("ttft_ms", "e2e_ms"):
        for source, reference in _pairs(times):
            a, b = (statistics.median(getattr(times[by], name)) for by in (source, reference))
            if abs(a / b - 1) > DISAGREEMENT:
                reason = calls_differ if name == "ttft_ms" and "engine" in (source, reference) else ""
                notes.append(
                    f"{name} is {a:.2f} by {source} and {b:.2f} by {reference}, more than {100 * DISAGREEMENT:g} % "
                    f"apart{reason}"
                )
    return notes


def _pairs(sources: Collection[str]) -> list[tuple[str, str]]:
    """Which sources are held against each other: both clocks of whole calls, and the better one with the engine's."""
    clock = next(source for source in OF_CALLS if source in sources)
    pairs = [("host", clock)] if clock != "host" else []
    return [*pairs, (clock, "engine")] if "engine" in sources else pairs
