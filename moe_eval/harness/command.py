"""The end of an `lm_eval` command with our model: one message and an exit code in place of a traceback."""

from __future__ import annotations

import functools
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

from moe_eval.errors import EngineError, UsageError, mended
from moe_eval.exits import settle
from moe_eval.harness import MODEL, context
from moe_eval.outside import files


def guarded(execute: Callable[..., None]) -> Callable[..., None]:
    """Wrap HarnessCLI.execute. A command for another model passes through, except where a task of ours refuses it."""

    @functools.wraps(execute)
    def run(self: Any, args: Namespace) -> None:
        if _model(args) == MODEL:
            _run(functools.partial(execute, self, args), args)
            return
        try:
            execute(self, args)
        except UsageError as error:
            print(f"moe_eval: {error}", file=sys.stderr)
            sys.exit(settle(error))

    return run


def _run(execute: Callable[[], None], args: Namespace) -> None:
    with context.collected() as end:
        try:
            execute()
        except BaseException as error:
            _print(end.lines, sys.stderr)
            message = _message(error, args, end.tasks)
            if message is None:
                raise
            print(f"moe_eval: {message}", file=sys.stderr)
            sys.exit(settle(error))
    _print(end.lines, sys.stdout)
    _print([f"moe_eval: {contradiction}." for contradiction in end.contradictions], sys.stderr)
    if end.contradictions:
        sys.exit(1)
    if end.tracking_failed:
        sys.exit(2)


def _print(lines: Iterable[str], stream: TextIO) -> None:
    for line in lines:
        print(line, file=stream)


def _model(args: Namespace) -> str | None:
    model: str | None = getattr(args, "model", None)
    config = getattr(args, "config", None)
    if model is None and config and Path(config).is_file():
        import yaml

        try:
            model = (yaml.safe_load(files.read_text(Path(config), "")) or {}).get("model")
        except (UsageError, ValueError, AttributeError, RecursionError, yaml.YAMLError):
            return None  # the harness explains a configuration that it cannot read
    return model


def _message(error: BaseException, args: Namespace, tasks: Sequence[str]) -> str | None:
    """The message in place of a traceback. None if the user can mend nothing. `tasks`: those that there are."""
    text = str(error).rstrip(".")
    if isinstance(error, (UsageError, EngineError)):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "Interrupted."
    if isinstance(error, FileNotFoundError) and getattr(args, "config", None):
        return f"{text}."
    # the harness's texts for an unknown task and for a missing option
    if isinstance(error, ValueError) and text.startswith(("Tasks not found", "No tasks specified")):
        name = text.partition(": ")[2].partition(",")[0]
        return f"{text}. {mended(name, tasks, 'Run lm_eval ls tasks for their names.')}"
    if isinstance(error, ValueError) and text.startswith("Specify --output_path"):
        return f"{text}."
    return None
