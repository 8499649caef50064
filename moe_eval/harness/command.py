"""The end of an `lm_eval` command that is ours: one sentence and an exit code in place of a traceback."""

from __future__ import annotations

import functools
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from moe_eval.errors import EngineError, UsageError
from moe_eval.exits import settle
from moe_eval.harness import MODEL, session


def guarded(execute: Callable[..., None]) -> Callable[..., None]:
    """Wrap HarnessCLI.execute. Commands for other models pass through, but for what our own tasks refuse."""

    @functools.wraps(execute)
    def run(self: Any, args: Namespace) -> None:
        if _model(args) != MODEL:
            try:
                execute(self, args)
            except UsageError as error:  # one of our tasks for a model that is not ours
                print(f"moe_eval: {error}", file=sys.stderr)
                sys.exit(settle(error))
            return
        try:
            execute(self, args)
        except BaseException as error:
            _tell(sys.stderr)
            sentence = _sentence(error, args)
            if sentence is None:
                raise
            print(f"moe_eval: {sentence}", file=sys.stderr)
            sys.exit(settle(error))
        _tell(sys.stdout)
        for sentence in session.contradictions():
            print(f"moe_eval: {sentence}.", file=sys.stderr)
        if session.contradictions():
            sys.exit(1)
        if session.tracking_failed():
            sys.exit(2)

    return run


def _model(args: Namespace) -> str | None:
    named = getattr(args, "model", None)
    config = getattr(args, "config", None)
    if named is None and config and Path(config).is_file():
        import yaml

        try:
            named = (yaml.safe_load(Path(config).read_text(encoding="utf-8")) or {}).get("model")
        except (OSError, ValueError, AttributeError, yaml.YAMLError):
            return None  # the harness explains a configuration it cannot read
    return named


def _tell(stream: TextIO) -> None:
    """Where the record and the MLflow run are, also where the run failed."""
    for line in session.epilogue():
        print(line, file=stream)


def _sentence(error: BaseException, args: Namespace) -> str | None:
    """What to say in place of a traceback; None for what is not the user's to mend."""
    text = str(error).rstrip(".")
    if isinstance(error, (UsageError, EngineError)):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "Interrupted."
    if isinstance(error, FileNotFoundError) and getattr(args, "config", None):
        return f"{text}."
    # the harness's own words for a task it does not know and for a missing option
    if isinstance(error, ValueError) and text.startswith(("Tasks not found", "No tasks specified")):
        return f"{text} (lm_eval ls tasks lists them)."
    if isinstance(error, ValueError) and text.startswith("Specify --output_path"):
        return f"{text}."
    return None
