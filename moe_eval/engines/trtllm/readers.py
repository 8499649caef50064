"""Log-probabilities of a prompt, read from either of the two forms that TensorRT-LLM returns.

Context logits: `context_logits` has a row for every prompt token, and row i is about token i + 1.

Prompt log-probabilities: `outputs[0].prompt_logprobs` has an entry for every prompt token, and entry i is about token
i + 1 (there is no leading None, unlike vLLM's). The entry holds the most probable tokens, and since 1.3.0rc11 always
the token that follows. Before, it held another token or none. The self-test therefore checks this form before its use.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from moe_eval.data.window import Window
from moe_eval.engines.base import PositionIds, WindowScores
from moe_eval.errors import EngineError
from moe_eval.frozen import frozen

_SLICE_BYTES = 256 << 20  # of float32 logits and of their softmax at once


class Reader(Protocol):
    """One way to score a window.

    Attributes:
        name: for the labels.
        sampling: the sampling settings that request it.
    """

    @property
    def name(self) -> str: ...

    @property
    def sampling(self) -> dict[str, object]: ...

    def prompt(self, window: Window) -> list[int]:
        """The token ids to send."""
        ...

    def read(self, output: Any, window: Window, top_k: int = 0, ids: PositionIds | None = None) -> WindowScores:
        """The scores in a finished request's RequestOutput. Only context logits have `ids` and top tokens."""
        ...


@frozen
class ContextLogits:
    """A float32 log-softmax of the context logits, on the GPU where there is one, a few rows at a time."""

    device: torch.device
    name: str = "context_logits"

    @property
    def sampling(self) -> dict[str, object]:
        return {"max_tokens": 1, "return_context_logits": True}

    def prompt(self, window: Window) -> list[int]:
        return list(window.inputs)

    def read(self, output: Any, window: Window, top_k: int = 0, ids: PositionIds | None = None) -> WindowScores:
        logits = rows(output, len(window.inputs))[-len(window.continuation) :]
        targets = np.array(window.continuation)[:, None]
        columns = targets if ids is None else np.concatenate([targets, ids], axis=1)
        picked = torch.from_numpy(columns.astype(np.int64)).to(self.device)
        step = max(1, _SLICE_BYTES // (4 * logits.shape[1]))
        parts = [
            self._reduce(logits[at : at + step], picked[at : at + step], min(top_k, logits.shape[1]))
            for at in range(0, len(targets), step)
        ]
        return WindowScores(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    @torch.inference_mode()
    def _reduce(self, logits: torch.Tensor, ids: torch.Tensor, top_k: int) -> list[Any]:
        """The columns of WindowScores. The first of the `ids` of a row is its target."""
        logprobs = torch.log_softmax(logits.to(self.device, torch.float32), dim=-1)
        picked, top = logprobs.gather(1, ids), logprobs.topk(top_k, dim=1)
        columns = (picked[:, 0], logprobs.argmax(1) == ids[:, 0], top.indices, top.values, picked[:, 1:])
        return [column.cpu().numpy() for column in columns]


def rows(output: Any, tokens: int) -> torch.Tensor:
    """The context logits, shape (tokens, vocabulary)."""
    logits = output.context_logits
    if logits is None:
        raise EngineError(
            "TensorRT-LLM returned no context logits. Turn off speculative decoding and postprocessing workers, which "
            "drop them."
        )
    if logits.ndim != 2 or logits.shape[0] != tokens:
        raise EngineError(
            f"TensorRT-LLM returned context logits of shape {tuple(logits.shape)} for a prompt of {tokens} tokens. "
            "Parts of the prompt came from its cache, and the scores would be wrong."
        )
    checked: torch.Tensor = logits
    return checked


@frozen
class PromptLogprobs:
    """The engine's own prompt log-probabilities, `k` most probable tokens beside the actual one."""

    k: int

    @property
    def name(self) -> str:
        return f"prompt_logprobs={self.k}"

    @property
    def sampling(self) -> dict[str, object]:
        return {"max_tokens": 1, "prompt_logprobs": self.k}

    def prompt(self, window: Window) -> list[int]:
        # the entry of the last prompt token is about the generated token, so the last scored token is sent as well
        return [*window.context, *window.continuation]

    def read(self, output: Any, window: Window, top_k: int = 0, ids: PositionIds | None = None) -> WindowScores:
        entries = output.outputs[0].prompt_logprobs
        tokens = len(window.context) + len(window.continuation)
        if not entries or len(entries) != tokens:
            raise EngineError(
                f"TensorRT-LLM returned {len(entries or ())} log-probabilities for a prompt of {tokens} tokens."
            )
        scores = [
            _entry(entry, token, self.k)
            for entry, token in zip(entries[len(window.context) - 1 : -1], window.continuation, strict=True)
        ]
        return WindowScores(
            np.array([logprob for logprob, _ in scores], dtype=np.float32),
            np.array([greedy for _, greedy in scores], dtype=np.bool_),
            np.empty((len(scores), 0), dtype=np.int64),
            np.empty((len(scores), 0), dtype=np.float32),
            np.empty((len(scores), 0), dtype=np.float32),
        )


def _entry(entry: Any, token: int, k: int) -> tuple[float, bool]:
    """The log-probability of a token, and whether no other token is more probable."""
    scored = entry.get(token)
    if scored is None:
        raise EngineError(f"TensorRT-LLM's prompt log-probabilities lack token {token} of the prompt.")
    if scored.rank is not None:
        return float(scored.logprob), scored.rank == 1
    others = [candidate.logprob for token_id, candidate in entry.items() if token_id != token]
    if not others and not k:
        raise EngineError("TensorRT-LLM's prompt log-probabilities state no rank and no other token.")
    return float(scored.logprob), scored.logprob >= max(others, default=scored.logprob)


def differences(first: Sequence[WindowScores], second: Sequence[WindowScores]) -> np.ndarray[Any, Any]:
    """Absolute differences of the log-probabilities of the same tokens, in nats."""
    pairs = zip(first, second, strict=True)
    return np.concatenate([np.abs(a.logprobs.astype(np.float64) - b.logprobs) for a, b in pairs])
