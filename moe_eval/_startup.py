"""Watches for the modules of lm-evaluation-harness that moe_eval attaches to.

Imported by moe_eval.pth when lm_eval is about to be imported, in any program: it may never fail, and it imports
nothing of moe_eval's before one of the watched modules is there.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

# What plugin.HOOKS attaches to; a test keeps the two alike.
WATCHED = frozenset(("lm_eval.models", "lm_eval.tasks", "lm_eval.evaluator", "lm_eval._cli.harness"))


class Finder:
    """Lets the other finders find a watched module, and attaches to it after it has been executed."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in WATCHED:
            return None
        for finder in sys.meta_path:
            if isinstance(finder, Finder) or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                _attach_after(spec.loader)
                return spec
        return None


def _attach_after(loader: object) -> None:
    execute = getattr(loader, "exec_module", None)
    if execute is None:
        return

    def exec_module(module: ModuleType) -> None:
        execute(module)
        try:
            from moe_eval.harness import plugin

            plugin.attach(module)
        # A start-up hook must not break a program that only happens to import lm-eval; the model says what failed.
        except Exception:
            return

    try:
        loader.exec_module = exec_module  # type: ignore[attr-defined]
    except AttributeError:
        return


if not any(isinstance(finder, Finder) for finder in sys.meta_path):
    sys.meta_path.insert(0, Finder())
