"""The end of an `lm_eval` command that is ours: one sentence and an exit code in place of a traceback."""

from __future__ import annotations

import functools
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from moe_eval.errors import UsageError
from moe_eval.harness import MODEL, session

_NO_TASK = "Tasks not found"


def guarded(execute: Callable[..., None]) -> Callable[..., None]:
    """Wrap HarnessCLI.execute. Commands for other models and other subcommands pass through untouched."""

    @functools.wraps(execute)
    def run(self: Any, args: Namespace) -> None:
        if _model(args) != MODEL:
            execute(self, args)
            return
        try:
            execute(self, args)
        except UsageError as error:
            _stop(str(error))
        except KeyboardInterrupt:
            _stop("Interrupted.", 130)
        except FileNotFoundError as error:
            if not getattr(args, "config", None):
                raise
            _stop(f"{error}.")
        except ValueError as error:
            # the harness's own word for a task it does not know
            if not str(error).startswith((_NO_TASK, "No tasks specified", "Specify --output_path")):
                raise
            hint = " (lm_eval ls tasks lists them)" if "asks" in str(error) else ""
            _stop(f"{str(error).rstrip('.')}{hint}.")
        except BaseException:
            _tell(sys.stderr)
            raise
        _tell(sys.stdout)
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


def _stop(sentence: str, code: int = 2) -> None:
    _tell(sys.stderr)
    print(f"moe_eval: {sentence}", file=sys.stderr)
    sys.exit(code)
