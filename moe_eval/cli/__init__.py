"""`moe-eval`: one file for each subcommand."""

from __future__ import annotations

import argparse
import sys

from moe_eval.cli import doctor, log, perf, ppl
from moe_eval.errors import EngineError, TrackingError, UsageError
from moe_eval.exits import settle


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand.

    Returns:
        0, or another code of `exits` with one sentence on standard error.
    """
    parser = argparse.ArgumentParser(
        prog="moe-eval", description="Speed and quality of mixture-of-experts models by precision of their experts."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    log.add(commands)
    doctor.add(commands)
    ppl.add(commands)
    perf.add(commands)
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except KeyboardInterrupt as error:
        print("moe-eval: Interrupted.", file=sys.stderr)
        return settle(error)
    except (UsageError, TrackingError, EngineError) as error:
        print(f"moe-eval: {error}", file=sys.stderr)
        return settle(error)
    except OSError as error:  # a disk that is full, or a folder that went away, in the middle
        print(f"moe-eval: {error}.", file=sys.stderr)
        return 1
    return 0
