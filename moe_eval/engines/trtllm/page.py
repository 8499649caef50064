"""The page of `moe-eval doctor --selftest`: what this engine does on this machine, for pasting into an issue."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from typing import Any

import numpy as np

from moe_eval.data.window import Window
from moe_eval.engines.base import GenerationRequest
from moe_eval.engines.trtllm.engine import TrtllmEngine
from moe_eval.engines.trtllm.readers import PromptLogprobs, Reader, differences
from moe_eval.engines.trtllm.selftest import SAME_LOGITS_TOLERANCE
from moe_eval.errors import EngineError, UsageError, WorkerDied

_WINDOWS, _WINDOW_TOKENS, _NEW_TOKENS = 10, 256, 16
_MARKS = {True: "agree", False: "do not agree", None: "could not tell"}


@dataclass
class Page:
    """Lines of Markdown, and whether anything that has to work did not."""

    lines: list[str] = field(default_factory=list)
    failed: bool = False

    def attempt(self, what: str, step: Callable[[], list[str]]) -> None:
        """Add a section; a step that breaks down is written as such and the next one goes on."""
        self.lines += ["", f"## {what}", ""]
        try:
            self.lines += step()
        except WorkerDied:
            raise
        except (EngineError, UsageError) as error:
            self.lines.append(f"- FAILED: {error}")
            self.failed = True


def write(engine: TrtllmEngine, tokenizer: Any) -> Page:
    """Exercise a loaded engine. The windows are ten pieces of the sample articles, at most 256 tokens long."""
    page = Page()
    page.attempt("Engine", lambda: [f"- {name}: {value}" for name, value in asdict(engine.facts).items()])
    page.attempt(
        "Self-test", lambda: [f"- {each.name}: {_MARKS[each.passed]} ({each.detail})" for each in engine.checks]
    )
    windows = _windows(engine, tokenizer)
    page.attempt(f"{len(windows)} windows", lambda: _scored(engine, windows))
    page.attempt("Generation", lambda: _generated(engine, windows))
    return page


def _windows(engine: TrtllmEngine, tokenizer: Any) -> list[Window]:
    text = resources.files("moe_eval").joinpath("assets/moe_sample.raw").read_text(encoding="utf-8")
    size = min(_WINDOW_TOKENS, engine.facts.max_length)
    tokens = tokenizer.encode(text, verbose=False)
    pieces = [tokens[at * size : (at + 1) * size] for at in range(_WINDOWS)]
    return [Window((piece[0],), tuple(piece[1:])) for piece in pieces if len(piece) > 1]


def _scored(engine: TrtllmEngine, windows: Sequence[Window]) -> list[str]:
    context = engine.score_with(engine.context, windows)
    logprobs = np.concatenate([each.logprobs for each in context]).astype(np.float64)
    lines = [f"- {engine.context.name}: token perplexity {np.exp(-logprobs.mean()):.4f} over {len(logprobs)} tokens"]
    chosen: Reader = engine.reader
    own = chosen if isinstance(chosen, PromptLogprobs) else PromptLogprobs(1)
    try:
        far = differences(context, engine.score_with(own, windows))
    except WorkerDied:
        raise
    except (EngineError, UsageError) as error:
        if own is chosen:
            raise
        return [*lines, f"- {own.name}, not used here: {error}"]
    lines.append(f"- {own.name}: largest difference {far.max():.3g} nats, mean {far.mean():.3g}")
    # other requests, so other batches: kernels and rounding may differ beyond those of one request
    if own is chosen and far.mean() > SAME_LOGITS_TOLERANCE:
        raise EngineError(f"{own.name} and context logits differ by {far.mean():.3g} nats on average.")
    return lines


def _generated(engine: TrtllmEngine, windows: Sequence[Window]) -> list[str]:
    request = GenerationRequest(_NEW_TOKENS, ignore_eos=True, timed=True)
    room = max(1, engine.facts.max_length - _NEW_TOKENS)
    completions = engine.generate([window.inputs[:room][:32] for window in windows[:2]], request)
    lines = []
    for each in completions:
        times = "no per-request times"
        if each.times is not None:
            times = f"first token after {each.times.first_token:.4f} s, last after {each.times.last_token:.4f} s"
        lines.append(f"- {len(each.token_ids)} of {_NEW_TOKENS} tokens, {times}")
    return lines
