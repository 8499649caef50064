"""Reads the words of a command line into a command's options, and writes --help."""

from __future__ import annotations

import argparse
import difflib
import re
import textwrap
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NoReturn, TypeVar

from moe_eval.cli.options import config
from moe_eval.cli.options.option import Misfit, Option, Value, options_of
from moe_eval.errors import UsageError

Options = TypeVar("Options")

_CONFIG = "config"
_NUMBER = re.compile(r"-\d*\.?\d+(e[+-]?\d+)?")
_WIDTH = 100


@dataclass(frozen=True)
class Command(Generic[Options]):
    """A subcommand.

    Attributes:
        options: the dataclass.
        help: one line for `moe-eval --help`.
        examples: a comment and a command line each.
    """

    name: str
    options: type[Options]
    help: str
    description: str
    examples: tuple[tuple[str, str], ...]

    def read(self, arguments: Sequence[str]) -> Options:
        """The options that a command line asks for.

        Raises:
            UsageError: one of them is no option, or has no such value.
            SystemExit: with 0, after --help.
        """
        parser = _parser(self)
        spelled = _spelled(arguments, self)
        if spelled.count(f"--{_CONFIG}") > 1:
            raise UsageError("--config is given twice. Write all options into one file.")
        parsed: dict[str, Value] = vars(parser.parse_intermixed_args(spelled))
        values: dict[str, Value] = {name: value for name, value in parsed.items() if value is not None}
        file = values.get(_CONFIG)
        if isinstance(file, Path):
            values = {**config.read(file, self.name, self.options), **values}
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        return self.options(**values)


def nearest(name: str, names: Collection[str]) -> str | None:
    """The name that was meant, perhaps."""
    return next(iter(difflib.get_close_matches(name, names, n=1, cutoff=0.6)), None)


class _Help(argparse.RawDescriptionHelpFormatter):
    """Help that keeps the lines of the examples."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(_sentence(message, self.prog))


def _parser(command: Command[Options]) -> _Parser:
    examples = "\n".join(f"  # {comment}\n  {line}" for comment, line in command.examples)
    options = options_of(command.options).values()
    positional = [_usage(option) for option in options if option.declared.is_positional]
    parser = _Parser(
        prog=f"moe-eval {command.name}",
        usage=" ".join(("moe-eval", command.name, *positional, "[options]")),
        description=textwrap.fill(command.description, _WIDTH),
        epilog=f"examples:\n{examples}",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=_Help,
    )
    groups: dict[str, argparse._ArgumentGroup] = {}
    for option in options:
        title = option.declared.group
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        _add(groups[title], option)
    return parser


def _usage(option: Option) -> str:
    name = option.declared.metavar or ",".join(option.choices) or option.name
    return f"[{name}]" if option.declared.word_count == "?" else f"{name} [{name} ...]"


def _add(group: argparse._ArgumentGroup, option: Option) -> None:
    text = explained(option).replace("%", "%%")
    if option.kind is bool:
        group.add_argument(option.label, action="store_true", default=argparse.SUPPRESS, help=text)
        return
    metavar = option.declared.metavar or (f"{{{','.join(option.choices)}}}" if option.choices else None)
    group.add_argument(
        option.label,
        type=_converter(option),
        nargs=option.declared.word_count,
        metavar=metavar,
        default=None,
        help=text,
    )


def explained(option: Option) -> str:
    """The help of an option, with its default where it has one that says something."""
    text = default_text(option.default)
    return f"{option.declared.help} (default: {text})" if text else option.declared.help


def default_text(default: Value) -> str:
    """A default as the command line writes it. Empty for none, an empty list and a switch that is off."""
    if default is None or default is False:
        return ""
    if isinstance(default, float):
        return f"{default:g}"
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _converter(option: Option) -> Callable[[str], Value]:
    def convert(word: str) -> Value:
        try:
            return option.from_word(word)
        except Misfit as misfit:
            value = f"{option.label} {word}".rstrip()
            sentence = f"{value} {misfit.problem}. Give {misfit.expected}.{misfit.meant}"
            raise argparse.ArgumentTypeError(sentence) from None

    return convert


def _spelled(arguments: Sequence[str], command: Command[Options]) -> list[str]:
    """The words with the options' own names: a dash in a name counts as an underscore.

    Raises:
        UsageError: there is no option of a name.
    """
    labels = [option.label for option in options_of(command.options).values() if not option.declared.is_positional]
    spelled: list[str] = []
    for index, word in enumerate(arguments):
        if word == "--":
            return [*spelled, *arguments[index:]]
        name, sign, value = word.partition("=")
        if not name.startswith("-") or name == "-" or _NUMBER.fullmatch(word):
            spelled.append(word)
            continue
        label = f"--{name[2:].replace('-', '_')}" if name.startswith("--") else name
        if label not in (*labels, "--help", "-h"):
            raise UsageError(_no_option(label, command.name, labels))
        spelled += [label, value] if sign and label == f"--{_CONFIG}" else [f"{label}{sign}{value}"]
    return spelled


def _no_option(label: str, command: str, labels: Collection[str]) -> str:
    meant = nearest(label, labels)
    fix = f"Did you mean {meant}?" if meant else f"`moe-eval {command} --help` lists them."
    return f"There is no option {label}. {fix}"


_ARGPARSE = (
    (r"argument (\S+): expected .*", r"\1 needs a value. Write it after the name."),
    (r"argument (\S+): ignored explicit argument .*", r"\1 takes no value. Leave the value out."),
    (r"argument \S+: (.*)", r"\1"),
    (r"the following arguments are required: (.*)", r"{prog} needs \1. `{prog} --help` explains it."),
    (r"unrecognized arguments: (.*)", r"{prog} has no use for \1. `{prog} --help` lists the options."),
)


def _sentence(message: str, prog: str) -> str:
    """What argparse says, in the words of this program."""
    line = " ".join(message.split())
    for pattern, sentence in _ARGPARSE:
        match = re.fullmatch(pattern, line)
        if match:
            return match.expand(sentence).replace("{prog}", prog)
    return f"{line}. `{prog} --help` lists the options."
