"""What a comparison shows of an arm by itself, from its records."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields

from moe_eval.comparison.comparable import Record, engine, measured, scored
from moe_eval.records.by_arm import ArmRecords
from moe_eval.records.comparison import ComparedArm
from moe_eval.records.kernels import KernelsRecord
from moe_eval.records.labels import EngineFacts, Status
from moe_eval.records.latency import Capacity, LatencyRecord
from moe_eval.records.quality import NO_NUMBERS, QualityRecord
from moe_eval.records.ratios import Interval
from moe_eval.records.shape_latency import ShapeLatency


def of_records(arm: ArmRecords, price: float | None) -> ComparedArm:
    """One arm.

    Args:
        price: of an hour of one GPU. None where it is not known.
    """
    records: list[Record] = [record for record in (arm.latency, arm.quality, arm.evaluated, arm.serving) if record]
    first = next(iter([*filter(engine, records), *records]), None)
    facts = engine(first)
    capacity, tool = (arm.latency.capacity, arm.latency.tool) if arm.latency else (None, None)
    checkpoint = facts.checkpoint if facts else tool.model if tool else None
    precisions = [record.precision_seen for record in arm.kernels.values() if record.precision_seen]
    status, error = _status(records)
    figures = scored(arm.quality)
    return ComparedArm(
        name=arm.name,
        precision=arm.precision,
        status=status,
        error=error,
        broken=_broken(arm.quality),
        precision_seen=", ".join(dict.fromkeys(precisions)) or None,
        engine=first.engine if first else None,
        engine_version=facts.version if facts else tool.engine_version if tool else None,
        gpu=first.gpu_name if first else None,
        emulated=any(facts.emulated for facts in map(engine, records) if facts),
        model=re.split(r"[/\\]", checkpoint.rstrip("/\\"))[-1] if checkpoint else None,
        gpus=facts.gpus if facts else tool.gpus if tool else None,
        random_weights=any(facts.weights == "random" for facts in map(engine, records) if facts),
        moe_backend=first.moe_backend if first else None,
        weights_gib=_weights_gib(facts, capacity),
        kv_cache_tokens=capacity.kv_cache_tokens if capacity else None,
        token_ppl=figures.perplexity if figures else None,
        word_ppl=figures.word_ppl if figures else None,
        bits_per_byte=figures.bits_per_byte if figures else None,
        taken_gib=_taken_gib(arm.latency),
        cost={} if price is None or facts is None or not facts.gpus else _cost(arm, price * facts.gpus),
        speed={
            name: {field.name: figure for field in fields(row.metrics) if (figure := interval(row, field.name))}
            for name, row in timed(arm).items()
        },
        floors={
            name: {phase: reached for phase in ("prefill", "decode_step") if (reached := getattr(row.floors, phase))}
            for name, row in timed(arm).items()
        },
        kernels={shape: categories(record) for shape, record in arm.kernels.items()},
        serving={
            point.name: {
                field.name: Interval(metric.median, metric.low, metric.high, metric.loads)
                for field in fields(point.metrics)
                if (metric := getattr(point.metrics, field.name))
            }
            for point in (arm.serving.points if arm.serving else ())
        },
    )


def _taken_gib(record: LatencyRecord | None) -> float | None:
    taken = [use.taken for use in (record.memory if record else ()) if use.taken is not None]
    return max(taken) / 2**30 if taken else None


def _cost(arm: ArmRecords, price_per_hour: float) -> dict[str, Interval]:
    """What a million output tokens cost by shape, at the price of all GPUs of the arm together."""
    per_hour = price_per_hour * 1e6 / 3600  # over tokens per second
    rates = {name: row.metrics.output_tok_s for name, row in timed(arm).items()}
    rates |= {point.name: point.metrics.output_tok_s for point in (arm.serving.points if arm.serving else ())}
    return {
        name: Interval(
            per_hour / rate.median,
            per_hour / rate.high if rate.high else None,
            per_hour / rate.low if rate.low else None,
            rate.loads,
        )
        for name, rate in rates.items()
        if rate
    }


def _broken(record: QualityRecord | None) -> str | None:
    """Why an arm's scores are no numbers. None where they are, or there are none."""
    if record is None:
        return None
    if record.error and NO_NUMBERS in record.error:
        return record.error
    is_number = record.figures is None or record.figures.perplexity is not None
    return None if is_number else "its perplexity is no number"


def _weights_gib(facts: EngineFacts | None, capacity: Capacity | None) -> float | None:
    """The weights on each GPU: as loaded, where the engine sees them, else by the files."""
    if facts and facts.weight_bytes:  # of all ranks together
        return sum(facts.weight_bytes.values()) / max(1, facts.gpus or 1) / 2**30
    return capacity.weights_bytes / 2**30 if capacity and capacity.weights_bytes else None


def _status(records: Sequence[Record]) -> tuple[Status, str | None]:
    """The worst that happened to an arm. Being left out of one evaluator is not bad where another one finished."""
    broken = [record for record in records if record.status not in (Status.FINISHED, Status.SKIPPED)]
    finished = [record for record in records if record.status is Status.FINISHED]
    record = next(iter([*broken, *finished, *records]), None)
    return (record.status, record.error) if record else (Status.FINISHED, None)


def timed(arm: ArmRecords) -> dict[str, ShapeLatency]:
    """The timed shapes of an arm by name."""
    return {shape.name: shape for shape in arm.latency.shapes} if arm.latency and measured(arm.latency) else {}


def interval(row: ShapeLatency | None, name: str) -> Interval | None:
    """A figure of a shape."""
    metric = getattr(row.metrics, name) if row else None
    return Interval(metric.median, metric.low, metric.high, metric.loads) if metric else None


def categories(record: KernelsRecord) -> dict[str, dict[str, float]]:
    """The ms by phase and category."""
    return {
        phase: {category: time.ms for category, time in times.categories.items()}
        for phase, times in record.phases.items()
    }
