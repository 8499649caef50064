"""`moe-eval` and its subcommands. See options.commands for their modules."""

from __future__ import annotations

import io
import os
import signal
import sys
from importlib import import_module

from moe_eval.errors import EngineError, TrackingError, UsageError
from moe_eval.exits import Ended, settle


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
    except BrokenPipeError:  # whoever read the output needs no more: end as the signal would
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (KeyboardInterrupt, UsageError, TrackingError, EngineError) as error:
        print(f"moe-eval: {str(error) or 'Interrupted.'}", file=sys.stderr)
        return settle(error)
    except OSError as error:  # a disk that is full, or a folder that went away, in the middle
        place = f" at {error.filename}" if error.filename else ""
        print(
            f"moe-eval: {error.strerror or error}{place}. Correct that and repeat the command. Records that were "
            "written before are whole.",
            file=sys.stderr,
        )
        return 1
    return 0


def _run(arguments: list[str]) -> None:
    if arguments[:1] == ["--version"]:
        from importlib.metadata import version

        print(f"moe-eval {version('moe-eval')}")
        return
    from moe_eval.cli.options.command_line import no_such
    from moe_eval.cli.options.commands import COMMANDS

    if not arguments:
        raise UsageError(f"moe-eval needs a command: {', '.join(COMMANDS)}. `moe-eval --help` explains them.")
    if arguments[0] in ("-h", "--help"):
        print(_help())
        return
    if arguments[0] not in COMMANDS:
        raise UsageError(no_such("command", arguments[0], COMMANDS, f"Give one of {', '.join(COMMANDS)}."))
    command = COMMANDS[arguments[0]]
    options = command.read(arguments[1:])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a name that a terminal cannot show ends no command
    # a command may import torch, which takes seconds that the others need not wait
    import_module(f"moe_eval.cli.{command.module}").run(options)


def _help() -> str:
    from moe_eval.cli.options.commands import COMMANDS

    lines = [
        "usage: moe-eval COMMAND [options]",
        "",
        "Speed and quality of mixture-of-experts models by precision of their experts.",
        "",
        "commands:",
        *(f"  {command.name:<10}{command.help}" for command in COMMANDS.values()),
        "",
        "options:",
        "  -h, --help  show this, or a command's options after its name",
        "  --version   show the version",
        "",
        "examples:",
        *(f"  # {comment}\n  {line}" for comment, line in COMMANDS["run"].examples),
    ]
    return "\n".join(lines)
