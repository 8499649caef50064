"""Watches for lm-evaluation-harness being imported; run at every interpreter start by moe_eval.pth.

It must cost nothing where lm-eval is not used and may never fail: it imports `sys` alone, and everything else only
once one of the watched modules is imported.
"""

import sys

# What plugin.HOOKS attaches to; a test keeps the two alike.
WATCHED = frozenset(("lm_eval.models", "lm_eval.tasks", "lm_eval.evaluator", "lm_eval._cli.harness"))


class Finder:
    """Lets the other finders find a watched module, and attaches to it after it has been executed."""

    @staticmethod
    def find_spec(name, path=None, target=None):  # type: ignore[no-untyped-def]
        if name not in WATCHED:
            return None
        for finder in sys.meta_path:
            if isinstance(finder, Finder) or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                _attach_after(spec.loader)  # type: ignore[no-untyped-call]
                return spec
        return None


def _attach_after(loader):  # type: ignore[no-untyped-def]
    execute = getattr(loader, "exec_module", None)
    if execute is None:
        return

    def exec_module(module):  # type: ignore[no-untyped-def]
        execute(module)
        try:
            from moe_eval.harness import plugin

            plugin.attach(module)
        # A start-up hook must not break a program that only happens to import lm-eval; the model says what failed.
        except Exception:
            return

    try:
        loader.exec_module = exec_module
    except AttributeError:
        return


if not any(isinstance(finder, Finder) for finder in sys.meta_path):
    sys.meta_path.insert(0, Finder())
