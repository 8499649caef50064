"""`moe-eval` and its subcommands. See options.commands for their modules.

--version and --help import next to nothing, and a command imports what it uses itself.
"""

from __future__ import annotations

import atexit
import errno
import gc
import io
import os
import sys

from moe_eval.errors import EngineError, TrackingError, UsageError, no_such

_JSON = "--json"
_NEW_OBJECTS = 200_000  # between two looks for cycles. Python's 700 are for programs that do not begin with imports
# commands that multiply no matrices. Threads that NumPy starts for it turn while they wait
_READING = ("compare", "export", "import", "kernels", "log")
_OF_NAMES = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR)  # a path that was given cannot be one


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand.

    Returns:
        0, or another code of `exits` with one sentence on standard error.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    gc.set_threshold(_NEW_OBJECTS, *gc.get_threshold()[1:])
    atexit.register(gc.freeze)  # a process that ends gives all its memory back, and looks for no cycles in it
    try:
        exit_code = _run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output needs no more: end as the signal would
        import signal

        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (KeyboardInterrupt, UsageError, TrackingError, EngineError) as error:
        from moe_eval.exits import settle

        _print_failure(str(error) or "Interrupted.", arguments)
        return settle(error)
    except OSError as error:  # a disk that is full, or a folder that went away, in the middle
        place = f" at {error.filename}" if error.filename else ""
        _print_failure(
            f"{error.strerror or error}{place}. Correct that and repeat the command. Records that were written before "
            "are whole.",
            arguments,
        )
        return 2 if error.errno in _OF_NAMES else 1
    except BaseException as error:  # a fault of the program, or a signal
        if not isinstance(error, SystemExit) or error.code:
            _print_failure(f"{type(error).__name__}: {error}", arguments, is_told=True)
        raise
    return exit_code


def _run(arguments: list[str]) -> int:
    from moe_eval.cli import overview

    if arguments[:1] == ["--version"]:
        print(f"moe-eval {overview.VERSION}")
        return 0
    name = next((word for word in arguments if word != _JSON), None)
    names = ", ".join(overview.COMMANDS)
    if name is None:
        raise UsageError(f"moe-eval needs a command: {names}. `moe-eval --help` explains them.")
    if name in ("-h", "--help"):
        print(overview.text())
        return 0
    if name not in overview.COMMANDS:
        raise UsageError(no_such("command", name, overview.COMMANDS, f"Give one of {names}."))
    if name in _READING:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from importlib import import_module

    from moe_eval.cli.options.commands import COMMANDS

    command = COMMANDS[name]
    at = arguments.index(name)
    options = command.read([*arguments[:at], *arguments[at + 1 :]])
    if options.json:
        arguments.append(_JSON)  # a file of options may ask for it, and failures are to be objects as well
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a name that a terminal cannot show ends no command
    from moe_eval.cli import output

    with output.redirected(options):
        # a command may import torch, which takes seconds that the others need not wait
        conclusion = import_module(f"moe_eval.cli.{command.module}").run(options)
    return output.conclude(conclusion, options)


def _print_failure(message: str, arguments: list[str], *, is_told: bool = False) -> None:
    """Print why a command failed: as an object too where one was asked for. `is_told`: a traceback says it."""
    from moe_eval.cli import output

    if _JSON in arguments:
        output.print_object({}, [message])
    if not is_told:
        output.print_errors([message])
