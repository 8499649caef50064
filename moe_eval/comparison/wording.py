"""The sentences of a verdict without speed, on an arm that is broken or did not finish, and of what is lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from moe_eval.comparison import task_wording
from moe_eval.records.comparison import ComparedArm, Pair
from moe_eval.records.labels import Status

_UNFINISHED = {Status.SKIPPED: "was left out", Status.RUNNING: "did not finish"}


def quality_sentence(pair: Pair) -> str:
    """What is lost by the scores of tokens and in tasks."""
    tasks = task_wording.sentences(pair.tasks)
    if pair.quality is None and tasks:
        return " ".join(tasks)
    tokens = pair.quality.sentence if pair.quality else "Quality was not measured on both sides."
    return " ".join([tokens, *tasks])


def with_quality(pair: Pair, sentence: str) -> str:
    """A sentence with what is lost."""
    return f"{sentence} {quality_sentence(pair)}"


def broken(pair: Pair, arms: Mapping[str, ComparedArm]) -> str:
    """The verdict on a pair of which an arm is broken, and in what."""
    failed = [
        f"{arm.name} gives no probabilities. {ended(capitalised(arm.broken))}"
        for arm in sides(pair, arms)
        if arm.broken
    ]
    why = " ".join(failed) or quality_sentence(pair)
    return f"Broken: {why} A broken arm has no speed."


def capitalised(text: str) -> str:
    """A text that begins with a capital letter."""
    return f"{text[:1].upper()}{text[1:]}"


def ended(text: str) -> str:
    """A text with one full stop at its end."""
    return f"{text.rstrip('. ')}."


def without_speed(pair: Pair, arms: Mapping[str, ComparedArm], emulated: Sequence[str]) -> tuple[str, str]:
    """Where there is no speed to compare: the sentences, and what would settle it."""
    if emulated:
        names = " and ".join(emulated)
        why = f"{names} {'are' if len(emulated) > 1 else 'is'} emulated, which says nothing about speed."
        settled = f"Run {names} on an engine that has it natively."
    else:
        failed = " ".join(unfinished_arms(pair, arms))
        why = failed or f"Speed was not measured of both {pair.reference} and {pair.other}."
        settled = "" if pair.tasks else "Run moe-eval perf with both arms."
        settled = "Start a run in which every arm finishes." if failed else settled
    if pair.quality is None and not pair.tasks:
        return f"Open: nothing is known of {pair.other} against {pair.reference}. {why}", settled
    return f"Quality only, the speed of {pair.other} is open. {quality_sentence(pair)} {why}", settled


def sides(pair: Pair, arms: Mapping[str, ComparedArm]) -> tuple[ComparedArm, ComparedArm]:
    """The two arms of a pair, the reference first."""
    return arms[pair.reference], arms[pair.other]


def unfinished_arms(pair: Pair, arms: Mapping[str, ComparedArm]) -> list[str]:
    """A sentence for every arm of a pair that did not finish."""
    failed = [arm for arm in sides(pair, arms) if arm.status is not Status.FINISHED]
    if len({(arm.status, arm.error) for arm in failed}) < len(failed):
        return [f"{unfinished(replace(failed[0], name=' and '.join(arm.name for arm in failed)))}."]
    return [f"{unfinished(arm)}." for arm in failed]


def unfinished(arm: ComparedArm) -> str:
    """What became of an arm that did not finish, such as "fp8 failed (out of memory)"."""
    ending = _UNFINISHED.get(arm.status, arm.status.value)
    return f"{arm.name} {ending}" + (f" ({arm.error.rstrip('.')})" if arm.error else "")
