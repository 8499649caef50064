"""Wraps `evaluate`: the model learns of all requests before the first one, and finished tasks outlive a failure."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from lm_eval.api.model import CachingLM, hash_args

from moe_eval.evaluators.engine_model import EngineLM
from moe_eval.harness import context
from moe_eval.harness.untyped import Arguments, Results

_PARTS = ("results", "configs", "versions", "samples")


class _Answered:
    """A model of the harness that repeats answers. `answers`: by the identity of the request."""

    rank, world_size = 0, 1

    def __init__(self, answers: Mapping[int, list[Any]], kinds: set[str]) -> None:
        rest = {identity: iter(request_answers) for identity, request_answers in answers.items()}
        for kind in kinds:
            setattr(self, kind, lambda requests: [next(rest[id(request)]) for request in requests])


def watched(evaluate: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the harness's evaluate. Evaluations of other models go through untouched."""
    signature = inspect.signature(evaluate)

    @functools.wraps(evaluate)
    def run(*args: Any, **kwargs: Any) -> Any:
        call = signature.bind(*args, **kwargs)
        call.apply_defaults()
        model = getattr(call.arguments["lm"], "lm", call.arguments["lm"])  # the harness's cache has the model in it
        if not isinstance(model, EngineLM):
            return evaluate(*args, **kwargs)
        tasks = dict(_tasks(call.arguments["task_dict"]))
        model.begin(tasks.values())
        try:
            return evaluate(*args, **kwargs)
        except BaseException:
            context.keep(_finished(evaluate, call.arguments, model, tasks))
            raise

    return run


def _tasks(tasks: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """The tasks by name, out of groups in which older versions of the harness nest them."""
    for name, task in tasks.get("tasks", tasks).items():
        if isinstance(task, Mapping):
            yield from _tasks(task)
        elif hasattr(task, "build_all_requests"):
            yield str(name), task


def _finished(evaluate: Callable[..., Any], arguments: Arguments, model: Any, tasks: Mapping[str, Any]) -> Results:
    """Results of the tasks whose requests are all answered, without standard errors. Empty where there are none."""
    parts: dict[str, dict[str, Any]] = {part: {} for part in _PARTS}
    for name, task in tasks.items():
        requests = getattr(task, "instances", None) or ()  # a task has none before they are made
        answers = {id(request): _answers(arguments["lm"], model, request) for request in requests}
        if not answers or any(len(answers[id(request)]) < request.repeats for request in requests):
            continue
        for request in requests:
            request.resps = []
        replay = _Answered(answers, {request.request_type for request in requests})
        task.build_all_requests = lambda **_: None  # its requests are there
        changes = {"lm": replay, "task_dict": {name: task}, "bootstrap_iters": 0, "log_samples": True}
        with suppress(Exception):  # the task's own metric may be what failed
            results = evaluate(**{**arguments, **changes, "write_out": False})
            for part in _PARTS:
                parts[part] |= results[part]
        del task.build_all_requests
    return {**parts, "config": model.get_model_info()} if parts["results"] else {}


def _answers(lm: Any, model: Any, request: Any) -> list[Any]:
    """What a request was answered, as far as it was: by the evaluation, by the model, or from the harness's cache."""
    answers: list[Any] = request.resps or model.answered.get(id(request), [])
    if not answers and isinstance(lm, CachingLM):
        cached = lm.dbdict.get(hash_args(request.request_type, request.args))
        return [] if cached is None else [cached] * request.repeats
    return list(answers)
