"""Tests at every start, on one known sequence, which form of log-probabilities this installation returns correctly.

The context logits of the whole sequence are compared with the choices of greedy generation after prefixes of it. An
engine that fails this comparison is stopped. The engine's own prompt log-probabilities are compared with the context
logits of the same request, and with those of the request that a run sends. If they differ, context logits are used.
Each comparison has to fail for a reading that is off by one position, or it proves nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from moe_eval.data.window import Window
from moe_eval.engines.trtllm.readers import ContextLogits, PromptLogprobs, Reader, rows
from moe_eval.errors import EngineError, UsageError, WorkerDied
from moe_eval.frozen import frozen

TEXT = "The shadow of a sundial falls on the hour line, and by noon it is at its shortest because the Sun stands high."
# Nats. Generation runs other kernels than a long prompt, in the checkpoint's own precision. The two readings of one
# request share their logits and differ by float32 rounding.
GENERATION_TOLERANCE = 0.25
SAME_LOGITS_TOLERANCE = 0.01
OTHER_REQUEST_TOLERANCE = 0.05  # on average: the same prompt again, maybe by other kernels
_PREFIXES = 8

Ask = Callable[[Sequence[Sequence[int]], dict[str, object]], list[Any]]


@frozen
class Check:
    """One comparison: its name, whether it passed (None: undecidable), and its figures in a sentence."""

    name: str
    passed: bool | None
    detail: str


@frozen
class Verdict:
    """The form of log-probabilities to score with on this installation.

    Attributes:
        reader: the form to read.
        label: for the records.
        fallback: why the prompt log-probabilities are not used, or None if they are.
        checks: all comparisons.
    """

    reader: Reader
    label: str
    fallback: str | None
    checks: tuple[Check, ...]


def known_sequence(tokenizer: Any, vocabulary: int) -> list[int]:
    """Token ids of TEXT, or fixed ids if no tokenizer makes enough of them."""
    ids = list(tokenizer.encode(TEXT)) if tokenizer is not None else []
    if len(ids) < 2 * _PREFIXES or max(ids) >= vocabulary:
        ids = [(1 + 7919 * at) % vocabulary for at in range(1, 25)]
    return ids


def run(ask: Ask, sequence: Sequence[int], context: ContextLogits) -> Verdict:
    """Compare the forms and choose one.

    Args:
        ask: sends prompts with sampling settings and returns their RequestOutputs in order.
        sequence: see known_sequence.

    Raises:
        EngineError: context logits contradict generation, so no score could be trusted.
    """
    sequence = list(sequence)
    chosen = ask([sequence], {"max_tokens": 1, "ignore_eos": True})[0].outputs[0].token_ids[0]
    sequence.append(int(chosen))  # at least this token is the most probable one
    first = _generation(ask, sequence, context)
    if first.passed is False:
        raise EngineError(
            f"The self-test failed, so no score of this TensorRT-LLM can be trusted: {first.detail}. Run moe-eval "
            "doctor --selftest and report its output."
        )
    verified = "checked against generation" if first.passed else "not checkable against generation"
    checks = [first]
    reasons = []
    for k in (0, 1):
        reader = PromptLogprobs(k)
        check = _prompt_logprobs(ask, sequence, context, reader)
        checks.append(check)
        if check.passed:
            label = f"{reader.name}, checked against context_logits, themselves {verified}"
            return Verdict(reader, label, None, tuple(checks))
        reasons.append(f"{reader.name}: {check.detail}")
    return Verdict(context, f"{context.name}, {verified}", ", ".join(reasons), tuple(checks))


def _generation(ask: Ask, sequence: list[int], context: ContextLogits) -> Check:
    """Check that row i of the context logits is the distribution of the token after i + 1 tokens."""
    lengths = [len(sequence) - 1 - at for at in range(1, _PREFIXES + 1)]
    outputs = ask([sequence[:length] for length in lengths], {"max_tokens": 1, "ignore_eos": True})
    tokens = [int(output.outputs[0].token_ids[0]) for output in outputs]
    logprobs = _logprobs(ask, sequence, context)

    def gap(shift: int) -> float:
        """The mean distance of the chosen token below the most probable token of its row."""
        at = [length - 1 + shift for length in lengths]
        return float(np.mean(logprobs[at].max(axis=1) - logprobs[at, tokens]))

    aligned, shifted = gap(0), min(gap(-1), gap(1))
    name = "context logits against greedy generation"
    detail = (
        f"the tokens that {_PREFIXES} greedy requests chose are {aligned:.3g} nats below the best of their rows "
        f"on average, and {shifted:.3g} in rows one off"
    )
    if not aligned <= GENERATION_TOLERANCE:  # NaN as well
        return Check(name, False, detail)
    return Check(name, True if shifted > GENERATION_TOLERANCE else None, detail)


def _prompt_logprobs(ask: Ask, sequence: list[int], context: ContextLogits, reader: PromptLogprobs) -> Check:
    """Check the engine's own figures and greedy flags against the context logits of the same request."""
    name = f"{reader.name} against context logits"
    window = Window((sequence[0],), tuple(sequence[1:]))
    try:
        (output,) = ask([sequence], {**reader.sampling, "return_context_logits": True})
        scores = reader.read(output, window)
        # A version may return the one and fail at, or lose, the request that scores are read from.
        (alone,) = ask([sequence], reader.sampling)
        of_alone = reader.read(alone, window).logprobs
    except WorkerDied:
        raise
    except (EngineError, UsageError) as error:
        return Check(name, False, str(error).rstrip("."))
    logprobs = _softmax(output, len(sequence), context)
    at = np.arange(len(sequence) - 1)
    targets = np.array(sequence[1:])

    def distance(shift: int) -> float:
        inside = (at + shift >= 0) & (at + shift < len(sequence))
        return float(np.abs(scores.logprobs[inside] - logprobs[at[inside] + shift, targets[inside]]).max())

    aligned, shifted = distance(0), min(distance(-1), distance(1))
    detail = f"largest difference {aligned:.3g} nats, and {shifted:.3g} for rows one off"
    if not aligned <= SAME_LOGITS_TOLERANCE:  # NaN as well
        return Check(name, False, detail)
    apart = float(np.abs(of_alone - scores.logprobs).mean())
    if not apart <= OTHER_REQUEST_TOLERANCE:
        return Check(name, False, f"without context logits they differ by {apart:.3g} nats on average")
    if shifted <= SAME_LOGITS_TOLERANCE:
        return Check(name, None, f"{detail}: this model cannot tell them apart")
    # a tie may be broken either way
    best = logprobs[at].max(axis=1) - logprobs[at, targets] <= SAME_LOGITS_TOLERANCE
    argmax = logprobs[at].argmax(axis=1) == targets
    if (scores.greedy & ~best).any() or (argmax & ~scores.greedy & (_runner_up(logprobs[at]) > 0)).any():
        return Check(name, False, "ranks contradict the logits")
    return Check(name, True, detail)


def _runner_up(logprobs: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The lead of the best entry of each row."""
    top = np.sort(logprobs, axis=1)[:, -2:]
    lead: npt.NDArray[Any] = top[:, 1] - top[:, 0]
    return lead


def _logprobs(ask: Ask, sequence: list[int], context: ContextLogits) -> npt.NDArray[Any]:
    (output,) = ask([sequence], context.sampling)
    return _softmax(output, len(sequence), context)


@torch.inference_mode()
def _softmax(output: Any, tokens: int, context: ContextLogits) -> npt.NDArray[Any]:
    logits = rows(output, tokens).to(context.device, torch.float32)
    logprobs: npt.NDArray[Any] = torch.log_softmax(logits, dim=-1).cpu().numpy()
    return logprobs
