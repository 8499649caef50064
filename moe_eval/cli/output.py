"""Where a command's words go: to a terminal, to a file, or away for `--json` and `--quiet`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import IO

from moe_eval.cli.options.output import OutputOptions
from moe_eval.frozen import frozen
from moe_eval.outside import words


@frozen
class Conclusion:
    """What a command comes to.

    Attributes:
        record: the object of --json: a record's fields, and what stands beside it.
        lines: what --quiet prints, in place of everything else.
        errors: messages for standard error.
        code: the exit code.
    """

    record: Mapping[str, object]
    lines: Sequence[str] = ()
    errors: Sequence[str] = ()
    code: int = 0


@contextmanager
def redirected(options: OutputOptions) -> Iterator[None]:
    """Standard output inside goes to standard error with --json, and nowhere with --quiet.

    What a library in this process prints by itself, such as one in C++, goes there too.
    """
    if options.verbose:
        import logging

        logging.basicConfig(level=logging.INFO)
    if not (options.json or options.quiet):
        yield
        return
    with ExitStack() as stack:
        target: IO[str] = sys.stderr
        if options.quiet:
            target = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
        if sys.stdout is sys.__stdout__ and sys.stdout is not None:
            stack.enter_context(_descriptor(target.fileno()))
        stack.enter_context(redirect_stdout(target))
        yield


@contextmanager
def _descriptor(target: int) -> Iterator[None]:
    sys.stdout.flush()
    before = os.dup(1)
    os.dup2(target, 1)
    try:
        yield
    finally:
        os.dup2(before, 1)
        os.close(before)


def conclude(conclusion: Conclusion, options: OutputOptions) -> int:
    """Print what is left to print of a command, which printed the rest while it worked, and return its exit code."""
    if options.json:
        print_object(conclusion.record, conclusion.errors)
    elif options.quiet:
        print(words.lines("\n".join(conclusion.lines)))
    print_errors(conclusion.errors)
    return conclusion.code


def print_object(content: Mapping[str, object], errors: Sequence[str]) -> None:
    """Print one JSON object: a number that is none (NaN, infinity) is null, and no address has a password."""
    import json

    from moe_eval.outside import documents
    from moe_eval.records import disk

    content = {**content, "error": " ".join(errors)} if errors else content
    text = disk.without_credentials(documents.encoded(content, str).decode())
    print(json.dumps(json.loads(text), indent=1), flush=True)


def print_errors(errors: Sequence[str]) -> None:
    """Print messages on standard error, a line each."""
    for error in errors:
        print(f"moe-eval: {words.sentence(error)}", file=sys.stderr)
