"""Reads the words of a command line into a command's options, and writes --help."""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Generic, NoReturn, TypeVar

from moe_eval.cli.options import config
from moe_eval.cli.options.option import COMMAND, PRINTED, Misfit, Option, Value, options_of
from moe_eval.errors import UsageError, no_such
from moe_eval.frozen import frozen

Options = TypeVar("Options")

_NUMBER = r"-\d*\.?\d+(e[+-]?\d+)?"
_WIDTH = 100
# what argparse says, in the words of this program
_SENTENCES = (
    (r"argument (\S+): expected .*", r"\1 needs a value. Write it after the name."),
    (r"argument (\S+): ignored explicit argument .*", r"\1 takes no value. Leave the value out."),
    (r"the following arguments are required: (.*)", r"{prog} needs \1. `{prog} --help` explains it."),
    (r"unrecognized arguments: (.*)", r"{prog} has no use for \1. `{prog} --help` lists the options."),
    (r"(.*)", r"\1. `{prog} --help` lists the options."),
)


@frozen
class Command(Generic[Options]):
    """A subcommand.

    Attributes:
        module: of moe_eval.cli, whose `run` takes the options.
        kind: the dataclass of the options, as MODULE:NAME in this folder. It is imported when it is used.
        examples: a comment and a command line each.
        demo: the values of options where none is given that says what to do.
    """

    name: str
    module: str
    kind: str
    description: str
    examples: tuple[tuple[str, str], ...]
    demo: Mapping[str, Value] = field(default_factory=dict)

    @property
    def options(self) -> type[Options]:
        """The dataclass of the options."""
        module, _, name = self.kind.partition(":")
        kind: type[Options] = getattr(import_module(f"moe_eval.cli.options.{module}"), name)
        return kind

    def read(self, arguments: Sequence[str]) -> Options:
        """The options that a command line asks for.

        Raises:
            UsageError: one of them is no option, or has no such value.
            SystemExit: with 0, after --help.
        """
        options = options_of(self.options)
        words = self._spelled(arguments, options.values())
        _check_words(words)
        parsed = vars(self._parser(options.values()).parse_intermixed_args(words))
        values = {name: _value(options[name], typed) for name, typed in parsed.items() if typed not in (None, [])}
        return self.filled(values)

    def filled(self, values: Mapping[str, Value]) -> Options:
        """The options of these values, with those of the file that `config` names.

        Those of the demo join them where all of them are of the command itself and of what is printed.

        Raises:
            UsageError: the file cannot be read, or an option says nothing without another one.
        """
        options, file = options_of(self.options), values.get("config")
        of_file = config.read(file, self.name, self.options) if isinstance(file, Path) else {}
        together = {**of_file, **values}
        if together.get("quiet") and together.get("verbose"):
            raise UsageError("--quiet prints less and --verbose prints more. Give one of them.")
        for name, value in together.items():
            needs = options[name].needs
            # what a file says beside an option that the command line overrules is for another time
            if not needs or needs[0] not in options or value == options[name].default:
                continue
            if name in values or needs[0] not in values:
                _check_needs(options[name], options[needs[0]], needs[1:], together)
        is_demo = all(options[name].group in (COMMAND, PRINTED) for name in together)
        return self.options(**({**self.demo, **together} if is_demo else together))

    def _spelled(self, arguments: Sequence[str], options: Collection[Option]) -> list[str]:
        """The words with the options' own names: a dash in a name counts as an underscore."""
        labels = [option.label for option in options if not option.is_positional]
        verbatim = [option.label for option in options if option.is_verbatim]
        spelled: list[str] = []
        for index, word in enumerate(arguments):
            if word == "--":
                return [*spelled, *arguments[index:]]
            if spelled and spelled[-1] in verbatim:
                spelled[-1] += f"={word}"
                continue
            label, sign, value = word.partition("=")
            if not label.startswith("-") or label == "-" or re.fullmatch(_NUMBER, word):
                spelled.append(word)
                continue
            if label.startswith("--"):
                label = f"--{label[2:].replace('-', '_')}"
            if label not in (*labels, "--help", "-h"):
                raise UsageError(no_such("option", label, labels, f"`moe-eval {self.name} --help` lists them."))
            spelled.append(f"{label}{sign}{value}")
        return spelled

    def _parser(self, options: Collection[Option]) -> _Parser:
        examples = "\n".join(f"  # {comment}\n  {line}" for comment, line in self.examples)
        positional = [_usage(option) for option in options if option.is_positional]
        parser = _Parser(
            prog=f"moe-eval {self.name}",
            usage=" ".join(("moe-eval", self.name, *positional, "[options]")),
            description=self.description,
            epilog=f"examples:\n{examples}",
            allow_abbrev=False,
            formatter_class=partial(argparse.HelpFormatter, width=_WIDTH),
        )
        self.add_arguments(parser, options)
        return parser

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser, options: Collection[Option]) -> dict[str, argparse.Action]:
        """Give a parser the options of a command, in their groups. Returns what it made of each, by name."""
        groups = {option.group: parser.add_argument_group(option.group) for option in options}
        actions = {}
        for option in options:
            group = groups[option.group]
            default = default_text(option.default)
            text = option.help.replace("%", "%%") + (f" (default: {default})" if default else "")
            metavar = option.metavar or (f"{{{','.join(option.choices)}}}" if option.choices else None)
            if option.kind is bool:
                action = group.add_argument(option.label, action="store_const", const=True, help=text)
            elif option.spelling is not None:
                action = group.add_argument(option.label, dest=option.name, action="append", metavar=metavar, help=text)
            else:
                action = group.add_argument(option.label, nargs=option.word_count, metavar=metavar, help=text)
            actions[option.name] = action
        return actions


def _check_words(words: Sequence[str]) -> None:
    """Refuse two files, and dashes for a value, which argparse takes for none."""
    if sum(word.partition("=")[0] == "--config" for word in words) > 1:
        raise UsageError("--config is given twice. Write all options into one file.")
    for word in words:
        label, _, value = word.partition("=")
        if value == "--" and label.startswith("--"):
            raise UsageError(f"{label} needs a value. Write it after the name.")


def _check_needs(option: Option, needed: Option, fitting: Sequence[Value], values: Mapping[str, Value]) -> None:
    """Refuse an option that says nothing without a value of another one."""
    value = values.get(needed.name, needed.default)
    if not {*fitting} & {*(value if isinstance(value, tuple) else (value,))}:
        names = needed.label if needed.kind is bool else f"{needed.label} {' or '.join(map(str, fitting))}"
        raise UsageError(f"{option.label} is for {names}. Give both, or leave {option.label} out.")


class _Parser(argparse.ArgumentParser):
    def format_help(self) -> str:
        import textwrap

        self.description = textwrap.fill(self.description or "", _WIDTH)
        self.formatter_class = argparse.RawDescriptionHelpFormatter
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        line = " ".join(message.split())
        matches = ((re.fullmatch(pattern, line), sentence) for pattern, sentence in _SENTENCES)
        raise UsageError(next(match.expand(text).replace("{prog}", self.prog) for match, text in matches if match))


def default_text(default: Value) -> str:
    """A default as the command line writes it. Empty for none, an empty list and a switch that is off."""
    if default is None or default is False:
        return ""
    if isinstance(default, float):
        return f"{default:g}"
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _usage(option: Option) -> str:
    name = option.metavar or ",".join(option.choices)
    return {"*": f"[{name} ...]", "+": f"{name} [{name} ...]"}.get(str(option.word_count), name)


def _value(option: Option, typed: bool | str | list[str]) -> Value:
    """What was typed for an option, as its field has it."""
    if isinstance(typed, bool):
        return typed
    try:
        return tuple(map(option.scalar, typed)) if isinstance(typed, list) else option.from_word(typed)
    except Misfit as misfit:
        words = " ".join([option.label, *typed]) if isinstance(typed, list) else f"{option.label} {typed}".rstrip()
        raise UsageError(f"{words} {misfit.problem}. Give {misfit.expected}.{misfit.meant}") from None
