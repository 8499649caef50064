"""Two or more recorded arms compared: one dictionary of JSON's types, made from the records alone."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from moe_eval.comparison import comparable, kernels, verdict
from moe_eval.comparison.comparable import engine, measured
from moe_eval.comparison.quality import quality
from moe_eval.data.workload import Shape
from moe_eval.evaluators import routing, speed
from moe_eval.evaluators.latency import Sample
from moe_eval.records.by_arm import AGAIN, ArmResults

SCHEMA = 1
_TIMES = ("e2e_ms", "ttft_ms", "tpot_ms")
_METRICS = (*_TIMES, "j_per_tok")
# which time a phase of a trace is a part of
_OF_PHASE = {"prefill": "ttft_ms", "decode": "tpot_ms"}
_SAMPLE = tuple(each.name for each in fields(Sample))


def make(arms: Sequence[ArmResults], across: Collection[str] = ()) -> dict[str, Any]:
    """Compare every arm with the first one.

    Args:
        arms: at least one; names are unique.
        across: what may differ nevertheless: comparable.GPUS.

    Returns:
        `schema`, `reference` (a name), `arms` and `pairs`.
        An arm: name, precision, precision_seen (by its kernels), engine, engine_version, gpu, emulated, moe_backend,
            status, error, perplexity (token_ppl, word_ppl, bits_per_byte; None where not measured); by shape, `speed`
            ({metric: {median, low, high}}) and `kernels` ({phase: {category: ms}}) of this arm alone.
        A pair: reference, other, verdict, sentence, because, settled_by (see verdict.pair), differs, labels (see
            comparable), `again` (both are the same arm), `schedule` (mode, blocks, per_block, and whether both were
            measured in one_run; None without speed), `shapes` and `quality` (see compare_quality).
        A shape: name, batch_size, input_len, output_len, verdict and reason; `speed` by time: speed.compare of the
            blocks; `medians` and `intervals` of both arms by metric, empty where neither was timed; `fair` and
            `fair_reason` (see routing.fair; None where nobody could look); `clocks` (`slow_samples` is None for an
            arm whose clocks nobody could read); `notes` of the measurement by arm; `kernels` by phase:
            kernel_changes.changes; `breakdown` by phase and category in ms per step; `ceiling` of the reference by
            phase; `predicted` by kernels against `measured`, of a decode step. None where something is missing on
            either side. Shapes that only traces have are listed as well, without speed.

    Raises:
        UsageError: the arrays of a perplexity are damaged.
    """
    described = [_arm(arm) for arm in arms]
    by_name = {each["name"]: each for each in described}
    found = [_pair(arms[0], other, across) for other in arms[1:]]
    pairs = [{**each, **verdict.pair(each, by_name)} for each in found]
    return {"schema": SCHEMA, "reference": arms[0].name, "arms": described, "pairs": pairs}


def _arm(arm: ArmResults) -> dict[str, Any]:
    records = [each for each in (arm.perf, arm.ppl) if each is not None]
    loaded = [each for each in records if engine(each)]
    first: Mapping[str, Any] = (loaded or records or [{}])[0]
    seen = dict.fromkeys(each["precision_seen"] for each in arm.kernels.values() if each["precision_seen"])
    status, error = _status(records)
    scored = arm.ppl if arm.ppl is not None and measured(arm.ppl) else None
    return {
        "name": arm.name,
        "precision": arm.precision,
        "precision_seen": ", ".join(seen) or None,
        "engine": first.get("engine"),
        "engine_version": engine(first).get("version"),
        "gpu": first.get("gpu_name"),
        "emulated": any(engine(each).get("emulated") is True for each in records),
        "moe_backend": first.get("moe_backend"),
        "status": status,
        "error": error,
        "perplexity": None
        if scored is None
        else {"token_ppl": scored["perplexity"], **{name: scored[name] for name in ("word_ppl", "bits_per_byte")}},
        "speed": {
            row["name"]: {
                name: {key: found[key] for key in ("median", "low", "high")}
                for name, found in row["metrics"].items()
                if found is not None
            }
            for row in _rows(arm).values()
        },
        "kernels": {shape: _categories(record) for shape, record in arm.kernels.items()},
    }


def _status(records: Sequence[Mapping[str, Any]]) -> tuple[str, str | None]:
    """The worst that happened to an arm; being left out of one evaluator is not bad where another one finished."""
    order = ("finished", "skipped")
    worst = [each for each in records if each["status"] not in order]
    finished = [each for each in records if each["status"] == "finished"]
    found = next(iter([*worst, *finished, *records]), None)
    return (found["status"], found["error"]) if found else ("finished", None)


def _pair(reference: ArmResults, other: ArmResults, across: Collection[str]) -> dict[str, Any]:
    differs = comparable.differs(reference, other, across)
    timed = reference.perf, other.perf
    schedule = None
    if timed[0] is not None and timed[1] is not None and measured(timed[0]) and measured(timed[1]):
        planned = timed[1]["schedule"]
        schedule = {key: planned[key] for key in ("mode", "blocks", "per_block")}
        schedule["one_run"] = comparable.one_run(*timed)
    return {
        "reference": reference.name,
        "other": other.name,
        "again": other.name.removesuffix(AGAIN) == reference.name.removesuffix(AGAIN)
        or comparable.same_arm(reference, other),
        "differs": differs,
        "schedule": schedule,
        "shapes": list(_shapes(reference, other)),
        "quality": quality(reference, other),
        "labels": comparable.labels(reference, other),
    }


def _rows(arm: ArmResults) -> dict[str, Mapping[str, Any]]:
    return {row["name"]: row for row in arm.perf["shapes"]} if arm.perf is not None and measured(arm.perf) else {}


def _shapes(reference: ArmResults, other: ArmResults) -> Iterator[dict[str, Any]]:
    """Timed shapes of either arm by size, then traced ones that belong to none of them."""
    ours, theirs = _rows(reference), _rows(other)
    timed = {name: _sizes(row) for name, row in {**ours, **theirs}.items()}
    used: set[str] = set()
    for name, sizes in sorted(timed.items(), key=lambda each: tuple(each[1].values())):
        traced = [kernels.matching(name, arm.kernels) for arm in (reference, other)]
        used |= {each for each in traced if each is not None}
        yield _shape(reference, other, name, sizes, traced)
    for name in sorted({*reference.kernels, *other.kernels} - used):
        sizes = kernels.sizes(name) or dict.fromkeys(("batch_size", "input_len", "output_len"))
        yield _shape(
            reference, other, name, sizes, [name if name in arm.kernels else None for arm in (reference, other)]
        )


def _sizes(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("batch_size", "input_len", "output_len")}


def _shape(
    reference: ArmResults, other: ArmResults, name: str, sizes: Mapping[str, Any], traced: Sequence[str | None]
) -> dict[str, Any]:
    rows = [_rows(arm).get(name) for arm in (reference, other)]
    found: dict[str, Any] = {"name": name, **sizes, "speed": dict.fromkeys(_TIMES)}
    found |= {"medians": {}, "intervals": {}, "fair": None, "fair_reason": None, "clocks": None}
    a, b = rows
    found["notes"] = {
        arm.name: list(row["notes"])
        for arm, row in zip((reference, other), rows, strict=True)
        if row is not None and row["notes"]
    }
    if a is not None or b is not None:
        both = {each: [row["metrics"][each] if row else None for row in rows] for each in _METRICS}
        found["medians"] = {each: [one and one["median"] for one in two] for each, two in both.items()}
        found["intervals"] = {
            each: [None if one is None or one["low"] is None else [one["low"], one["high"]] for one in two]
            for each, two in both.items()
        }
    if a is not None and b is not None:
        found["speed"] = speed.compare(_blocks(a), _blocks(b), Shape(**sizes))
        found["fair"], found["fair_reason"] = _fair(reference, other, Shape(**sizes))
        found["clocks"] = {"sm_mhz": [_clock(a), _clock(b)], "slow_samples": [_slow(a), _slow(b)]}
    found |= {"kernels": None, "breakdown": None, "ceiling": None, "predicted": None, "measured": None}
    told = {phase: (found["speed"][time] or {}).get("value") for phase, time in _OF_PHASE.items()}
    found["measured"] = told["decode"]
    if traced[0] is not None:
        found["ceiling"] = _ceilings(reference.kernels[traced[0]])
    if traced[0] is not None and traced[1] is not None:
        records = reference.kernels[traced[0]], other.kernels[traced[1]]
        found["kernels"] = kernels.changes(*records, (reference.name, other.name), told)
        found["breakdown"] = _breakdown(*map(_categories, records))
        decode = found["kernels"].get("decode")
        if decode and decode["predicted_ratio_busy"] is not None:
            found["predicted"] = {"busy": decode["predicted_ratio_busy"], "step": decode["predicted_ratio_step"]}
    return found


def _blocks(row: Mapping[str, Any]) -> list[list[Sample]]:
    return [[Sample(**{name: each[name] for name in _SAMPLE}) for each in block] for block in row["blocks"]]


def _fair(reference: ArmResults, other: ArmResults, shape: Shape) -> tuple[bool | None, str | None]:
    """Whether both read prompts over as many steps and tokens spread over alike numbers of experts.

    Returns:
        Whether it is so, and why not, or why that is not known.
    """
    facts = [engine(arm.perf) for arm in (reference, other)]
    apart = speed.steps_apart(facts, shape, (reference.name, other.name))
    if apart:
        return False, apart
    counted = []
    for arm in (reference, other):
        told = (arm.perf or {})["routing"]
        found = told if isinstance(told, str) else told.get(str(shape.batch_size))
        if not isinstance(found, Mapping):
            return None, f"{arm.name}: {found or 'not measured at this batch size'}"
        counted.append(found)
    try:
        one, two = map(routing.from_json, counted)
        reason = routing.fair(one, two, names=(reference.name, other.name))
    except (KeyError, TypeError, ValueError, OverflowError):
        return None, "the count of experts cannot be read"
    return reason is None, reason


def _clock(row: Mapping[str, Any]) -> float | None:
    seen = [gpu["sm_mhz_median"] for block in row["gpu"] for gpu in block["gpus"]]
    known = [each for each in seen if each is not None]
    return statistics.median(known) if known else None


def _slow(row: Mapping[str, Any]) -> int | None:
    known = [flag for block in row["gpu"] for flag in block["slow_samples"] if flag is not None]
    return sum(known) if known else None


def _categories(record: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    return {
        phase: {category: each["ms"] for category, each in found["categories"].items()}
        for phase, found in record["phases"].items()
    }


def _breakdown(
    a: Mapping[str, Mapping[str, float]], b: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, list[float]]]:
    """Both arms' ms by phase and category; 0 where a traced phase has none of a category."""
    return {
        phase: {name: [a[phase].get(name, 0.0), b[phase].get(name, 0.0)] for name in {**a[phase], **b[phase]}}
        for phase in a
        if phase in b
    }


def _ceilings(record: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    return {
        phase: {
            "busy": found["ceiling"]["if_free"],
            "wall": (found["wall_ceiling"] or {}).get("if_free"),
            "share": found["ceiling"]["expert_gemm_share"],
        }
        for phase, found in record["phases"].items()
    }
