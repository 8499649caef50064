"""Tasks of the harness in a plan: built before anything is loaded, so that what is wrong with them costs no load."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from functools import partial
from typing import Any

from moe_eval.data import harness_tasks
from moe_eval.data.harness_tasks import Suite
from moe_eval.errors import UsageError
from moe_eval.evaluators import generation
from moe_eval.records.run import Skipped
from moe_eval.runner.arm_plan import Arm
from moe_eval.runner.request import RunRequest

_TOKENS = 256  # that a model adds where a task sets no number
_MARGIN = 1.25  # the text with the most characters need not have the most tokens


def built(request: RunRequest, arms: Sequence[Arm]) -> list[Suite]:
    """What --tasks names, with all documents and prompts.

    Raises:
        UsageError: a task cannot be built, or arms cannot answer it.
    """
    if request.tasks is None or not arms:
        return []
    render_chat = None
    if request.tasks.apply_chat_template:
        from moe_eval.checkpoint import tokenizer as tokenizers

        tokenizer = _tokenizer(request, arms)
        render_chat = partial(tokenizers.render_chat, tokenizer, enable_thinking=None)
    with contextlib.redirect_stderr(io.StringIO()):  # bars and warnings, which arms have in their logs
        entries = harness_tasks.build(request.tasks, render_chat)
    names = [suite.name for suite in entries]
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled is not None:
        raise UsageError(f"Two entries of --tasks are called {doubled}. Rename one of the files.")
    for arguments in (arguments for suite in entries for arguments in suite.generation):
        generation.read(arguments, _TOKENS)
    return entries


def _tokenizer(request: RunRequest, arms: Sequence[Arm]) -> Any:
    from moe_eval.checkpoint import tokenizer as tokenizers

    first = arms[0].settings
    return tokenizers.load(request.tokenizer or first.checkpoint, first.revision, first.trust_remote_code)


def window(request: RunRequest, suites: Sequence[Suite], planned: Sequence[Arm | Skipped]) -> int:
    """Tokens of the longest text that a model reads and adds to. 0 without tasks.

    Arms that are timed have a window of their shapes, which would cut the prompts of tasks.
    """
    arms = [entry for entry in planned if isinstance(entry, Arm)]
    if not suites or not arms:
        return 0
    tokenizer = _tokenizer(request, arms)
    counts = [
        len(tokenizer.encode(text, verbose=False)) + (_TOKENS if added is None else added)
        for suite in suites
        for text, added in suite.longest
    ]
    return int(_MARGIN * max(counts))
