"""The latency record of an arm that other tools measured."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from moe_eval.data.workload import Shape
from moe_eval.errors import UsageError
from moe_eval.evaluators import speed
from moe_eval.frozen import frozen
from moe_eval.imports.result import ToolResult
from moe_eval.records.labels import Origin, Status
from moe_eval.records.latency import LatencyRecord
from moe_eval.records.samples import LatencyFigures, LatencyMetrics, Metric, Sample
from moe_eval.records.shape_latency import Floors, ShapeLatency
from moe_eval.records.tool import LOADS, NOT_STATED

_CLOCK = "host"  # all of these tools time by the clock of the process that sends the requests
_CLIENTS = ("vllm bench serve", "aiperf")  # they measure a server, which they did not start
# libraries whose version a tool states as its own
_PACKAGES = {"trtllm-bench": "tensorrt-llm", "aiperf": "aiperf"}

Value = TypeVar("Value", int, str)


@frozen
class Statement:
    """What the user says of all files of an arm. None for what the files say themselves."""

    precision: str | None = None
    batch_size: int | None = None
    input_len: int | None = None
    output_len: int | None = None


def record(arm: str, results: Mapping[Path, ToolResult], statement: Statement) -> LatencyRecord:
    """The record of one arm. Several files of one shape are loads, where the tool loads the engine itself.

    Raises:
        UsageError: files contradict each other or the statement, one comes twice, or sizes are stated nowhere.
    """
    _check(results)
    groups: dict[Shape, list[ToolResult]] = {}
    for file, result in results.items():
        groups.setdefault(_shape(file, result, statement), []).append(result)
    first = next(iter(results.values()))
    _check_loads(groups)
    precision = _stated(next(iter(results)), "precision", first.precision, statement.precision) or NOT_STATED
    rows = [_row(shape, groups[shape]) for shape in sorted(groups, key=lambda shape: tuple(vars(shape).values()))]
    labels, top = first.labels, rows[0]
    requests = [result.labels.requests for result in results.values()]
    package = _PACKAGES.get(labels.name)
    return LatencyRecord(
        arm=arm,
        precision=precision,
        precision_planned=precision,
        status=Status.FINISHED,
        quant_algo=first.quant_algo,
        gpu_name=first.gpu_name,
        engine=first.engine,
        batch_size=top.batch_size,
        input_len=top.input_len,
        output_len=top.output_len,
        num_iterations=top.num_iterations,
        mean_latency_ms=top.figures.mean_latency_ms,
        std_latency_ms=top.figures.std_latency_ms,
        output_tokens_per_sec=top.output_tokens_per_sec,
        prefill_tokens_per_sec=top.prefill_tokens_per_sec,
        shapes=tuple(rows),
        no_routing="an imported file does not count experts",
        no_rates="an imported file does not state what its machine reaches",
        origin=Origin(versions={package: labels.version} if package and labels.version else {}),
        tool=replace(labels, requests=sum(filter(None, requests)) if all(requests) else None),
    )


def _check(results: Mapping[Path, ToolResult]) -> None:
    """Refuse files of different arms, and one that comes twice."""
    (first_file, first), *rest = results.items()
    for file, result in rest:
        if _arm_of(result) != _arm_of(first):
            raise UsageError(
                f"{first_file} and {file} are of different tools, models or machines. Import them as two arms."
            )
    entries = list(results.items())
    for index, (file, result) in enumerate(entries):
        twin = next((name for name, earlier in entries[:index] if earlier == result), None)
        if twin:
            raise UsageError(f"{twin} and {file} hold the same measurement. Give it once.")


def _arm_of(result: ToolResult) -> tuple[object, ...]:
    labels = replace(result.labels, requests=None)
    return labels, result.engine, result.gpu_name, result.precision, result.quant_algo


def _check_loads(groups: Mapping[Shape, Sequence[ToolResult]]) -> None:
    """Refuse several runs of a client at one shape, of which nobody knows whether they are loads."""
    for shape, results in groups.items():
        if len(results) > 1 and results[0].labels.name in _CLIENTS:
            raise UsageError(
                f"Several files are of {shape.name}, and {results[0].labels.name} does not state whether the server "
                "was started anew. Give one file for every concurrency."
            )
        names = {(bool(result.e2e_s), bool(result.ttft_s), bool(result.tpot_s)) for result in results}
        if len(names) > 1:
            raise UsageError(f"The files of {shape.name} have different figures. Import them as two arms.")


def _shape(file: Path, result: ToolResult, statement: Statement) -> Shape:
    if not (result.e2e_s or result.ttft_s or result.tpot_s):
        raise UsageError(f"{file} states no times. Measure again with the tool's times of requests.")
    sizes = {
        name: _stated(file, name, round(size or 0) or None, getattr(statement, name))
        for name, size in (
            ("batch_size", result.batch_size),
            ("input_len", result.input_len),
            ("output_len", result.output_len),
        )
    }
    absent = [f"--{name}" for name, size in sizes.items() if size is None]
    if absent:
        raise UsageError(f"{file} does not state its sizes. Give {' and '.join(absent)} as it was measured.")
    shape = Shape(**{name: size for name, size in sizes.items() if size is not None})
    if result.tokens is not None and result.tokens != shape.tokens:
        raise UsageError(
            f"{file} has {result.tokens} tokens in all and {shape.name} comes to {shape.tokens}. Give the sizes as it "
            "was measured, with all sequences alike."
        )
    return shape


def _stated(file: Path, name: str, of_file: Value | None, of_user: Value | None) -> Value | None:
    """What the file or the user says, where they do not contradict each other."""
    if of_file is not None and of_user is not None and of_file != of_user:
        raise UsageError(f"{file} is of {name} {of_file}, not {of_user}. Leave --{name} out.")
    return of_user if of_file is None else of_file


def _row(shape: Shape, results: Sequence[ToolResult]) -> ShapeLatency:
    loads = tuple(_samples(result) for result in results)
    sizes, steps = [len(load) for load in loads], shape.output_len - 1
    b, i, n = shape.batch_size, shape.input_len, shape.output_len
    labels = results[0].labels
    is_batch = labels.load != "serving"
    e2e = [sample.last[_CLOCK] for load in loads for sample in load if sample.last]
    ttft = [sample.first[_CLOCK] for load in loads for sample in load if sample.first]
    tpot = [sample.per_token for load in loads for sample in load if sample.per_token is not None]
    rates = [result.output_tok_s for result in results if result.output_tok_s is not None]

    def metric(values: Sequence[float], scale: float = 1000) -> Metric | None:
        return speed.metric(sizes, [scale * value for value in values], _CLOCK) if values else None

    metrics = LatencyMetrics(
        ttft_ms=metric(ttft),
        tpot_ms=metric(tpot) if steps else None,
        e2e_ms=metric(e2e),
        output_tok_s=metric(rates, 1) if rates else metric([b * n / seconds for seconds in e2e], 1),
        prefill_tok_s=metric([b * i / seconds for seconds in ttft], 1) if is_batch else None,
    )
    notes = tuple(dict.fromkeys((_source(results), *(note for result in results for note in _notes(result)))))
    is_iterations = labels.statistic == "iteration"
    figures = LatencyFigures(
        metrics=metrics,
        mean_latency_ms=1000 * statistics.fmean(e2e) if e2e and is_iterations else None,
        std_latency_ms=1000 * statistics.stdev(e2e) if len(e2e) > 1 and is_iterations else None,
        sources={},
        request_ttft_ms=None,
        notes=notes,
    )
    return ShapeLatency(
        name=shape.name,
        batch_size=b,
        input_len=i,
        output_len=n,
        num_iterations=sum(sizes),
        warmup_iterations=(),
        figures=figures,
        output_tokens_per_sec=metrics.output_tok_s.median if metrics.output_tok_s else None,
        prefill_tokens_per_sec=metrics.prefill_tok_s.median if metrics.prefill_tok_s else None,
        notes=notes,
        experts_per_layer_step=None,
        experts_of_independent_draws=None,
        floors=Floors(no_floors="an imported file does not state what its machine reaches"),
        turns=(),
        warm_ups=(),
        loads=loads,
    )


def _samples(result: ToolResult) -> tuple[Sample, ...]:
    """The iterations of one run, or one sample of its medians."""
    count = max(len(result.e2e_s), len(result.ttft_s), len(result.tpot_s))
    return tuple(
        Sample(
            started=0.0,
            ended=0.0,
            first={_CLOCK: result.ttft_s[at]} if result.ttft_s else {},
            last={_CLOCK: result.e2e_s[at]} if result.e2e_s else {},
            per_token=result.tpot_s[at] if result.tpot_s else None,
        )
        for at in range(count)
    )


def _source(results: Sequence[ToolResult]) -> str:
    labels = results[0].labels
    count = sum(result.labels.requests or 0 for result in results)
    version = f" {labels.version}" if labels.version else ""
    requests = f"the median of {count} requests" if count else labels.statistic
    statistic = "iterations" if labels.statistic == "iteration" else requests
    return f"imported from {labels.name}{version}, {LOADS[labels.load]}: {statistic}"


def _notes(result: ToolResult) -> tuple[str, ...]:
    lengths = [size for size in (result.input_len, result.output_len) if size is not None]
    if all(size == round(size) for size in lengths):
        return result.notes
    means = " and ".join(f"{size:.6g}" for size in lengths)
    return (f"lengths differ between requests, and the shape has their means ({means} tokens)", *result.notes)
