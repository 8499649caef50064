"""Records of schema 1 in the form of the present classes.

Values of another type than expected are passed on as they are, so that msgspec refuses them with their path.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

Json = Mapping[str, object]

SCHEMA = 1
_ESTIMATE = ("value", "error", "low", "high")
_MODES = {"interleaved": "turns", "reloaded": "alternating", "sequential": "alternating"}


def latency(old: Json, _: str) -> dict[str, object]:
    """The record of an arm's speed, which has its name in it."""
    routing, no_routing = _or_reason(old.get("routing"))
    rates, no_rates = _or_reason(old.get("rates"))
    skipped = old.get("status") == "skipped"
    is_reloaded = _is_reloaded(old.get("schedule"))
    return {
        **old,
        "schedule": _schedule(old.get("schedule")),
        "shapes": _entries(old.get("shapes", () if skipped else None), lambda shape: _shape(shape, is_reloaded)),
        "routing": routing,
        "no_routing": no_routing,
        "rates": rates,
        "no_rates": no_rates,
        **_origin(old),
    }


def quality(old: Json, arm: str) -> dict[str, object]:
    """The record of the perplexity of an arm of this name."""
    noise_floor = old.get("noise_floor")
    return {
        **old,
        "arm": arm,
        "figures": old if old.get("status") == "finished" else None,
        "noise_floor": _noise_floor(noise_floor, old.get("documents"))
        if isinstance(noise_floor, Mapping)
        else noise_floor,
        **_origin(old),
    }


def kernels(old: Json, arm: str) -> dict[str, object]:
    """The record of a trace of an arm of this name, or of one that could not be made."""
    finished = old.get("status", "finished") == "finished"
    return {**old, "arm": arm, "phases": old.get("phases") if finished else {}, "origin": {"run_id": old.get("run_id")}}


def run(old: Json) -> dict[str, object]:
    """The record of a run."""
    evaluators = old.get("evaluators")
    if isinstance(evaluators, Mapping):
        evaluators = {arm: _entries(names, _evaluator) for arm, names in evaluators.items()}
    return {
        **old,
        "command": "run",
        "options": old.get("asked"),
        "evaluators": evaluators,
        "skipped": _entries(old.get("skipped"), _skipped),
        "schedule": _schedule(old.get("schedule")),
        "tasks": old.get("steps"),
    }


def is_reference(old: Json) -> bool:
    """Whether a record of speed or perplexity is that of the arm which the others were compared with."""
    if old.get("status") != "finished" or "reference" not in old:
        return False
    # perplexity compares the reference with itself as well, which shows that nothing moves
    return old["reference"] in (None, old.get("arm", old.get("precision")))


def compared(old: Json) -> tuple[str, dict[str, object]] | None:
    """The reference of a record of perplexity and the comparison with it. None where it was not compared."""
    reference, divergence = old.get("reference"), old.get("divergence")
    if old.get("status") != "finished" or not isinstance(reference, str) or not isinstance(divergence, Mapping):
        return None
    comparison = {
        "ln_ppl_ratio": _estimate(old.get("ln_ppl_ratio"), old.get("documents")),
        "ppl_change": None,
        "divergence": _divergence(divergence),
        "flag": old.get("flag"),
        "no_interval": old.get("no_interval"),
    }
    return reference, comparison


def _is_reloaded(schedule: object) -> bool:
    return isinstance(schedule, Mapping) and schedule.get("mode") == "reloaded"


def _schedule(old: object) -> object:
    """Blocks were loads only where arms were loaded again in each."""
    if not isinstance(old, Mapping):
        return old
    blocks, per_block = old.get("blocks"), old.get("per_block")
    mode = _MODES.get(str(old.get("mode")), old.get("mode"))
    if _is_reloaded(old) or not (isinstance(blocks, int) and isinstance(per_block, int)):
        return {**old, "mode": mode, "loads": blocks, "per_load": per_block}
    return {**old, "mode": mode, "loads": 1, "per_load": blocks * per_block}


def _shape(old: object, is_reloaded: bool) -> object:
    if not isinstance(old, Mapping):
        return old
    blocks, turns = old.get("blocks"), old.get("gpu")
    if not is_reloaded and isinstance(blocks, list) and all(isinstance(block, list) for block in blocks):
        blocks = [[sample for block in blocks for sample in block]]
    turns = _entries(turns, lambda turn: _turn(turn, is_reloaded))
    # the figures' names have not changed: they stood beside the shape's sizes
    return {**old, "figures": old, "floors": _floors(old.get("floors")), "turns": turns, "loads": blocks}


def _turn(old: object, is_reloaded: bool) -> object:
    return {**old, "load": old.get("block") if is_reloaded else 0} if isinstance(old, Mapping) else old


def _floors(old: object) -> object:
    if not isinstance(old, Mapping):
        return {"no_floors": old}
    return {name: _floor(reached) for name, reached in old.items()}


def _floor(old: object) -> object:
    return {**old, "floor": old, "fraction": old.get("fraction_of_floor")} if isinstance(old, Mapping) else old


def _noise_floor(old: Json, documents: object) -> dict[str, object] | None:
    divergence = old.get("divergence")
    if isinstance(divergence, Mapping) and (divergence := _divergence(divergence)) is None:
        return None
    return {**old, "ln_ppl_ratio": _estimate(old.get("ln_ppl_ratio"), documents), "divergence": divergence}


def _divergence(old: Json) -> dict[str, object] | None:
    """Only tokens that both arms gave counted singly, so it is 0 where they gave none in common."""
    return None if _numbers(old) is None else {**old, "kind": "shared ids"}


def _estimate(old: object, documents: object) -> object:
    """NaN was read as null: an estimate without one of its numbers is none."""
    if not isinstance(old, Mapping) or not isinstance(documents, int):
        return old
    return None if _numbers(old, _ESTIMATE) is None else {**old, "df": documents - 1}


def _numbers(old: Json, names: tuple[str, ...] = ()) -> Json | None:
    return None if any(old.get(name) is None for name in names or old) else old


def _skipped(old: object) -> object:
    if not isinstance(old, list) or len(old) != 3:
        return old
    return {"arm": old[0], "evaluator": _evaluator(old[1]), "reason": old[2]}


def _evaluator(old: object) -> object:
    return "quality" if old == "perplexity" else old


def _origin(old: Json) -> dict[str, object]:
    """What has moved: the labels of the arm, and where its record is from."""
    labels = old.get("labels", {})
    if isinstance(labels, Mapping) and labels.get("engine") == {}:
        labels = {**labels, "engine": None}
    origin = {name: old.get(name) for name in ("run_id", "machine", "git")}
    return {
        "labels": labels,
        "origin": {**origin, "options": old.get("asked", {}), "versions": old.get("versions", {})},
    }


def _or_reason(old: object) -> tuple[object, str | None]:
    """A value, or the sentence that stood in its place."""
    return (None, old) if isinstance(old, str) else (old, None)


def _entries(old: object, change: Callable[[object], object]) -> object:
    return [change(entry) for entry in old] if isinstance(old, (list, tuple)) else old
