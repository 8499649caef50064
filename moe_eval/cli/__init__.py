"""`moe-eval`: one file for each subcommand."""

from __future__ import annotations

import io
import os
import signal
import sys
from importlib import import_module

from moe_eval.cli import config
from moe_eval.cli.options import Parser
from moe_eval.errors import EngineError, TrackingError, UsageError
from moe_eval.exits import Ended, settle

_COMMANDS = ("run", "compare", "ppl", "perf", "kernels", "log", "doctor")


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand.

    Returns:
        0, or another code of `exits` with one sentence on standard error.
    """
    try:
        _run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
    except Ended as ended:
        return ended.code
    except BrokenPipeError:  # whoever read the output has seen enough: end as the signal would
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (KeyboardInterrupt, UsageError, TrackingError, EngineError) as error:
        said = str(error) or "Interrupted."
        print(f"moe-eval: {said}", file=sys.stderr)
        return settle(error)
    except OSError as error:  # a disk that is full, or a folder that went away, in the middle
        where = f" at {error.filename}" if error.filename else ""
        print(
            f"moe-eval: {error.strerror or error}{where}; mend that and repeat the command. Records that were written "
            "before are whole.",
            file=sys.stderr,
        )
        return 1
    return 0


def _run(argv: list[str]) -> None:
    parser = Parser(
        prog="moe-eval", description="Speed and quality of mixture-of-experts models by precision of their experts."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    # most commands import torch, which takes seconds that the others need not wait
    for name in argv[:1] if argv[:1] and argv[0] in _COMMANDS else _COMMANDS:
        import_module(f"moe_eval.cli.{name}").add(commands)
    chosen = commands.choices.get(argv[0]) if argv else None
    args = parser.parse_args(config.expanded(argv, chosen) if chosen is not None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a name that a terminal cannot show ends no command
    args.run(args)
