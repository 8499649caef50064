"""Imports the library of a served engine and says what is wrong with its installation."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from moe_eval.engines.served.traits import Traits
from moe_eval.errors import UsageError


def import_library(traits: Traits) -> ModuleType:
    """Import the library.

    Raises:
        UsageError: it cannot be imported.
    """
    try:
        return importlib.import_module(traits.package)
    # shared libraries, MPI and torch raise errors of any class if they do not fit this machine
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UsageError(
            f"{traits.title} is installed but cannot be imported ({type(error).__name__}: {reason}). Install it again "
            f"with the {traits.requirements} that it requires."
        ) from error


@contextmanager
def expected_api(traits: Traits, version: str) -> Iterator[None]:
    """Inspect a library inside.

    Raises:
        UsageError: the library lacks something that the code inside needs.
    """
    try:
        yield
    except (AttributeError, ImportError, KeyError, TypeError) as error:
        raise UsageError(
            f"{traits.title} {version} has an API that moe_eval does not know ({error}). Use {traits.versions}."
        ) from error
