"""Watches for the modules of lm-evaluation-harness that moe_eval attaches to.

moe_eval.pth imports it in any program that is about to import lm_eval. So it may never fail, and it imports nothing of
moe_eval before one of the watched modules is there.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

# the modules of plugin.HOOKS, which a test keeps alike
WATCHED = frozenset(("lm_eval.models", "lm_eval.tasks", "lm_eval.evaluator", "lm_eval._cli.harness"))


class Finder:
    """Lets the other finders find a watched module, and attaches to it after its execution."""

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
        # a start-up hook must not break a program that happens to import lm-eval, and the model warns of the failure
        except Exception:
            return

    try:
        loader.exec_module = exec_module  # type: ignore[attr-defined]
    except AttributeError:
        return


if not any(isinstance(finder, Finder) for finder in sys.meta_path):
    sys.meta_path.insert(0, Finder())
