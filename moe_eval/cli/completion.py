"""`moe-eval completion`: the script with which a shell completes commands, options, choices and paths."""

from __future__ import annotations

import argparse
from pathlib import Path

from moe_eval.cli import overview
from moe_eval.cli.options.commands import COMMANDS
from moe_eval.cli.options.machine import CompletionOptions
from moe_eval.cli.options.option import Option, options_of
from moe_eval.cli.output import Conclusion


def run(options: CompletionOptions) -> Conclusion:
    """Run the subcommand."""
    import shtab

    script = shtab.complete(_parser(), options.shell)
    print(script)
    return Conclusion({"shell": options.shell, "script": script}, [script])


def _parser() -> argparse.ArgumentParser:
    """All commands in one parser, which is read by shtab alone."""
    parser = argparse.ArgumentParser("moe-eval")
    commands = parser.add_subparsers()
    for command in COMMANDS.values():
        options, line = options_of(command.options), overview.COMMANDS[command.name]
        inner = commands.add_parser(command.name, help=line, description=line)
        for option, action in command.add_arguments(inner, options.values()).items():
            _complete(options[option], action)
    return parser


def _complete(option: Option, action: argparse.Action) -> None:
    import shtab

    if option.choices or option.suggestions:
        action.choices = option.choices or option.suggestions
    elif option.kind is Path or option.is_path:
        is_folder = option.name.endswith("_dir")
        action.complete = shtab.DIRECTORY if is_folder else shtab.FILE  # type: ignore[attr-defined]
