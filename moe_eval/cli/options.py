"""How commands read their options: by their whole names, with their defaults in the help."""

from __future__ import annotations

import argparse
from typing import Any


class Parser(argparse.ArgumentParser):
    """A parser of a command, and of all commands below it."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**{**given, "allow_abbrev": False, "formatter_class": _Help})


class _Help(argparse.HelpFormatter):
    """Help with the default of every option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        said = action.help or ""
        told = action.default not in (None, False, "", argparse.SUPPRESS) and action.default != []
        return f"{said} (default: %(default)s)" if told and "%(default)" not in said else said
