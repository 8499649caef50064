"""Tasks of the harness in a plan: built before anything is loaded, so that what is wrong with them costs no load."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from functools import partial
from typing import Any

from moe_eval.checkpoint import contents
from moe_eval.data import harness_tasks
from moe_eval.data.harness_tasks import Suite
from moe_eval.engines.endpoint.load import server_of, window_of
from moe_eval.errors import UsageError
from moe_eval.evaluators import generation
from moe_eval.records.run import EvaluatorName, Skipped
from moe_eval.runner import fit
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
    chats = [arm.name for arm in arms if arm.is_endpoint and server_of(arm.settings).chat]
    _check_chats(arms, chats, is_chat=request.tasks.apply_chat_template)
    render_chat: harness_tasks.RenderChat | None = None
    if request.tasks.apply_chat_template:
        from moe_eval.checkpoint import tokenizer as tokenizers

        render_chat = partial(tokenizers.render_chat, _tokenizer(request, arms), enable_thinking=None)
        if chats:  # the server puts the chat into its template
            render_chat = _as_json
    with contextlib.redirect_stderr(io.StringIO()):  # bars and warnings, which arms have in their logs
        entries = harness_tasks.build(request.tasks, render_chat)
    names = [suite.name for suite in entries]
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled is not None:
        raise UsageError(f"Two entries of --tasks are called {doubled}. Rename one of the files.")
    for arm in arms:
        if not arm.is_endpoint:
            _check_generation(arm, entries)
    return entries


def _check_generation(arm: Arm, entries: Sequence[Suite]) -> None:
    """Refuse generation arguments that an arm's engine does not take, or that leave no room for a prompt."""
    limit = fit.positions(contents.read_config(fit.folder(arm)))
    for arguments in (arguments for suite in entries for arguments in suite.generation):
        tokens = generation.read(arguments, _TOKENS, arm.engine).request.max_new_tokens
        if limit is not None and tokens >= limit:
            raise UsageError(
                f"max_gen_toks={tokens} leaves no room for a prompt in the window of {limit} tokens of {arm.name}. "
                "Give a smaller number."
            )


def _as_json(chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
    return json.dumps([chat_history, add_generation_prompt])


def check_endpoints(arms: Sequence[Arm], evaluators: Sequence[EvaluatorName]) -> None:
    """Refuse to measure of a server that somebody else started what is not its answers.

    Raises:
        UsageError: an evaluator that cannot be.
    """
    names = [arm.name for arm in arms if arm.is_endpoint]
    others = [name for name in evaluators if name not in ("tasks", "serving")]
    if names and others:
        raise UsageError(
            f"{' and '.join(names)} is a server, of which {', '.join(others)} cannot be measured: other requests may "
            "run there. Give moe-eval run --evaluators tasks, or serving."
        )


def _check_chats(arms: Sequence[Arm], chats: Sequence[str], *, is_chat: bool) -> None:
    """Refuse chats beside texts: their prompts differ, so that nothing could be compared."""
    if chats and not is_chat:
        raise UsageError(f"{chats[0]} is asked by chats. Add --apply_chat_template, or leave out chat=true.")
    if chats and len(chats) < len(arms):
        raise UsageError(
            f"{chats[0]} is asked by chats and other arms by texts, so that prompts differ. Leave out chat=true, and "
            "give the arm tokenizer=FOLDER_OR_NAME."
        )
    for arm in arms if is_chat else ():
        if arm.is_endpoint and arm.name not in chats and not arm.settings.options.get("tokenizer"):
            raise UsageError(f"--apply_chat_template needs a tokenizer. Give {arm.name} tokenizer=FOLDER_OR_NAME.")


def check_scores(arms: Sequence[Arm], suites: Sequence[Suite]) -> None:
    """Refuse tasks that need log-probabilities which endpoints do not return. It asks them.

    Raises:
        UsageError: with the first such endpoint.
    """
    scored = [suite.name for suite in suites if suite.requests - {"generate_until"}]
    for arm in arms if scored else ():
        if arm.is_endpoint:
            server_of(arm.settings).check_scores()
            if not arm.settings.options.get("tokenizer"):
                raise UsageError(
                    f"{scored[0]} scores log-likelihoods, for which {arm.name} needs a tokenizer. Give it "
                    "tokenizer=FOLDER_OR_NAME."
                )


def common_window(arms: Sequence[Arm], suites: Sequence[Suite]) -> int | None:
    """The window in tokens in which all arms score: perplexity depends on it. It asks endpoints for theirs.

    Returns:
        None without an endpoint: engines take a model's own window.
    """
    if not suites or not any(arm.is_endpoint for arm in arms):
        return None
    windows = [
        window_of(arm.settings) if arm.is_endpoint else fit.positions(contents.read_config(fit.folder(arm)))
        for arm in arms
    ]
    return min(window for window in windows if window is not None)


def _tokenizer(request: RunRequest, arms: Sequence[Arm]) -> Any:
    from moe_eval.checkpoint import tokenizer as tokenizers

    first = min(arms, key=lambda arm: arm.is_endpoint).settings
    name = request.tokenizer or str(first.options.get("tokenizer") or first.checkpoint)
    return tokenizers.load(name, first.revision, first.trust_remote_code)


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
