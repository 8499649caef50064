"""Attaches moe_eval to lm-evaluation-harness, which has no plug-in interface.

It extends four public names of the harness when their modules are imported. The model registry learns `trtllm_moe`,
TaskManager finds our tasks, simple_evaluate and evaluate record runs of our model, and the command explains our errors.
Every other model goes through untouched.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from moe_eval.data.harness_tasks import tasks_folder
from moe_eval.harness import MODEL, context
from moe_eval.harness.untyped import Arguments

_TARGET = "moe_eval.harness.model:MoeLM"

_attached: set[str] = set()
_failed: dict[str, str] = {}


def _register_model(models: ModuleType) -> None:
    # after lm_eval.models has run, since the harness registers its own models only into an empty registry
    registry = importlib.import_module("lm_eval.api.registry").model_registry
    registry.register(MODEL, target=_TARGET)


def _find_tasks(tasks: ModuleType) -> None:
    manager = tasks.TaskManager
    original = manager.__init__
    signature = inspect.signature(original)

    @functools.wraps(original)
    def with_our_tasks(*args: Any, **kwargs: Any) -> None:
        call = signature.bind(*args, **kwargs)
        call.apply_defaults()
        if call.arguments["include_defaults"]:
            paths = call.arguments["include_path"] or []
            paths = list(paths) if isinstance(paths, (list, tuple)) else [paths]
            # ours first, so that a user's task of the same name wins
            call.arguments["include_path"] = [str(tasks_folder()), *paths]
        original(*call.args, **call.kwargs)
        context.current().tasks = call.arguments["self"].all_tasks
        if call.arguments["metadata"] and hasattr(manager, "_config_is_python_task"):
            _pass_metadata(call.arguments["self"], call.arguments["metadata"])

    manager.__init__ = with_our_tasks


def _pass_metadata(manager: Any, metadata: Mapping[str, object]) -> None:
    """Give tasks that are classes the command's metadata, which a harness before 0.4.12 does not do."""
    get_config: Callable[[str], Arguments] = manager._get_config

    def with_metadata(name: str) -> dict[str, object]:
        config = get_config(name)
        return {**config, "metadata": {**(config.get("metadata") or {}), **metadata}} if "class" in config else config

    manager._get_config = with_metadata


def _record_runs(evaluator: ModuleType) -> None:
    from moe_eval.harness import evaluation, session

    evaluator.simple_evaluate = session.recorded(evaluator.simple_evaluate)  # type: ignore[attr-defined]
    evaluator.evaluate = evaluation.watched(evaluator.evaluate)  # type: ignore[attr-defined]


def _guard_command(harness: ModuleType) -> None:
    from moe_eval.harness import command

    harness.HarnessCLI.execute = command.guarded(harness.HarnessCLI.execute)


HOOKS: dict[str, Callable[[ModuleType], None]] = {
    "lm_eval.models": _register_model,
    "lm_eval.tasks": _find_tasks,
    "lm_eval.evaluator": _record_runs,
    "lm_eval._cli.harness": _guard_command,
}


def attach(module: ModuleType) -> None:
    """Attach to a module of the harness after its execution. A failure is remembered and not raised."""
    name = module.__name__
    if name in _attached:
        return
    try:
        HOOKS[name](module)
    except Exception as error:
        _failed[name] = f"{type(error).__name__}: {error}"
    else:
        _attached.add(name)


def attach_all() -> dict[str, str]:
    """Import every module of HOOKS and attach to it. Returns the failures, by module."""
    for name in HOOKS:
        try:
            attach(importlib.import_module(name))
        except ImportError as error:
            _failed[name] = f"{type(error).__name__}: {error}"
    return dict(_failed)


def warn_if_detached(log: logging.Logger) -> None:
    """Warn of every part of moe_eval that is missing from this process, since nothing else shows it."""
    for name in HOOKS:
        if name in sys.modules and name not in _attached:
            reason = _failed.get(name, "the start-up hook did not run")
            log.warning(
                "moe_eval is not attached to %s (%s), so runs may not be recorded. Start with "
                "python -m moe_eval.harness.",
                name,
                reason,
            )
