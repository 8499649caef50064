"""The page of `moe-eval doctor --selftest`, for pasting into an issue: how this engine works on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from typing import Any

import numpy as np

from moe_eval.data.window import Window
from moe_eval.engines.base import GenerationRequest
from moe_eval.engines.trtllm import contract
from moe_eval.engines.trtllm.engine import TrtllmEngine
from moe_eval.engines.trtllm.readers import PromptLogprobs, Reader, differences
from moe_eval.engines.trtllm.selftest import SAME_LOGITS_TOLERANCE
from moe_eval.errors import EngineError, UsageError, WorkerDied

_WINDOWS, _WINDOW_TOKENS, _NEW_TOKENS = 10, 256, 16
_MARKS = {True: "agree", False: "do not agree", None: "could not tell"}


@dataclass
class Page:
    """Lines of Markdown, and whether a necessary step failed."""

    lines: list[str] = field(default_factory=list)
    failed: bool = False

    def attempt(self, title: str, write_lines: Callable[[], list[str]]) -> None:
        """Add a section. A failure is written into it, and the next section follows."""
        self.lines += ["", f"## {title}", ""]
        try:
            self.lines += write_lines()
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
        "Self-test", lambda: [f"- {check.name}: {_MARKS[check.passed]} ({check.detail})" for check in engine.checks]
    )
    page.attempt("API", lambda: contract.lines(engine.facts.version))
    windows = _windows(engine, tokenizer)
    page.attempt(f"{len(windows)} windows", lambda: _scored(engine, windows))
    page.attempt("Generation", lambda: _generated(engine, windows))
    page.attempt("Iterations", lambda: _iterated(engine))
    return page


def _windows(engine: TrtllmEngine, tokenizer: Any) -> list[Window]:
    text = resources.files("moe_eval").joinpath("assets/moe_sample.raw").read_text(encoding="utf-8")
    size = min(_WINDOW_TOKENS, engine.facts.max_length)
    tokens = tokenizer.encode(text, verbose=False)
    pieces = [tokens[at * size : (at + 1) * size] for at in range(_WINDOWS)]
    return [Window((piece[0],), tuple(piece[1:])) for piece in pieces if len(piece) > 1]


def _scored(engine: TrtllmEngine, windows: Sequence[Window]) -> list[str]:
    context = engine.score_with(engine.context, windows)
    logprobs = np.concatenate([scores.logprobs for scores in context]).astype(np.float64)
    lines = [f"- {engine.context.name}: token perplexity {np.exp(-logprobs.mean()):.4f} over {len(logprobs)} tokens"]
    chosen: Reader = engine.reader
    prompt_logprobs = chosen if isinstance(chosen, PromptLogprobs) else PromptLogprobs(1)
    name = prompt_logprobs.name
    try:
        distances = differences(context, engine.score_with(prompt_logprobs, windows))
    except WorkerDied:
        raise
    except (EngineError, UsageError) as error:
        if prompt_logprobs is chosen:
            raise
        return [*lines, f"- {name}, not used here: {error}"]
    lines.append(f"- {name}: largest difference {distances.max():.3g} nats, mean {distances.mean():.3g}")
    # these are other requests in other batches: kernels and rounding may differ more than within one request
    if prompt_logprobs is chosen and distances.mean() > SAME_LOGITS_TOLERANCE:
        raise EngineError(f"{name} and context logits differ by {distances.mean():.3g} nats on average.")
    return lines


def _iterated(engine: TrtllmEngine) -> list[str]:
    steps = engine.steps()
    return ["- not reported"] if steps is None else [f"- {name}: {value}" for name, value in asdict(steps).items()]


def _generated(engine: TrtllmEngine, windows: Sequence[Window]) -> list[str]:
    request = GenerationRequest(_NEW_TOKENS, ignore_eos=True, timed=True)
    room = max(1, engine.facts.max_length - _NEW_TOKENS)
    completions = engine.generate([window.inputs[:room][:32] for window in windows[:2]], request)
    lines = []
    for completion in completions:
        times = "no per-request times"
        if completion.times is not None:
            first, last = completion.times.first_token, completion.times.last_token
            times = f"first token after {first:.4f} s, last after {last:.4f} s"
        lines.append(f"- {len(completion.token_ids)} of {_NEW_TOKENS} tokens, {times}")
    return lines
