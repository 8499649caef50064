"""The Kullback-Leibler divergence of two arms that scored the same tokens, by their most probable tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from moe_eval.errors import UsageError
from moe_eval.stats import Divergence, Estimate, ratio_of_sums

Array = npt.NDArray[Any]

_TAIL = 1e-7  # float32 logarithms leave the tail a rounding error, and a smaller tail means nothing
_LOWEST = math.log(np.finfo(np.float64).tiny)  # a probability of less is written as 0


def between(
    reference_ids: Array,
    reference_logprobs: Array,
    arm_ids: Array,
    arm_logprobs: Array,
    *,
    documents: Sequence[int],
    of_reference_ids: Array | None = None,
) -> Divergence:
    """How far an arm's distributions are from the reference's.

    Args:
        reference_ids, arm_ids: int, shape (positions, k), most probable first.
        reference_logprobs, arm_logprobs: natural logs, the same shapes.
        documents: positions of every document, in order.
        of_reference_ids: the arm's log-probabilities of `reference_ids`. None where it did not score them.

    Raises:
        UsageError: the positions differ, or there are none.
    """
    positions, k = reference_ids.shape
    shapes = {reference_ids.shape, arm_ids.shape, (arm_ids if of_reference_ids is None else of_reference_ids).shape}
    if not positions or not k or len(shapes) > 1 or sum(documents) != positions:
        raise UsageError(
            "A divergence needs the same positions and as many top tokens of both arms. Run both on the same windows."
        )
    nats = np.empty(positions)
    step = max(1, (1 << 24) // (k * k))
    for start in range(0, positions, step):
        part = slice(start, start + step)
        reference = Reference(reference_logprobs[part])
        if of_reference_ids is None:
            arm_q = np.exp(arm_logprobs[part].astype(np.float64))
            q = _capped(reference.p, reference_ids[part], arm_ids[part], arm_q)
            with np.errstate(divide="ignore"):
                nats[part] = reference.nats(np.log(q))
        else:
            nats[part] = reference.nats(of_reference_ids[part])
    same = reference_ids[:, 0] == arm_ids[:, 0]
    kind: Literal["capped", "reference ids"] = "capped" if of_reference_ids is None else "reference ids"
    return of_positions(nats, same, documents=documents, k=k, covered=covered(reference_logprobs), kind=kind)


def covered(logprobs: Array) -> float:
    """The mean share of probability that the tokens of positions hold: natural logs, shape (positions, k)."""
    return float(np.exp(logprobs.astype(np.float64)).sum(axis=1).mean())


class Reference:
    """The distributions of a reference at some positions: of single tokens, and what is left as one bucket.

    Args:
        logprobs: natural logs, shape (positions, k).
    """

    def __init__(self, logprobs: Array) -> None:
        logs = logprobs.astype(np.float64)
        self.p = np.exp(logs)
        self._tail = _tail(self.p)
        self._negative_entropy = (self.p * np.maximum(logs, _LOWEST)).sum(axis=1) + self._tail * np.log(self._tail)

    def nats(self, of_ids: Array) -> Array:
        """The divergence at every position, shape (positions,), of an arm that gives these tokens `of_ids`."""
        logs = np.maximum(of_ids, _LOWEST, dtype=np.float64)
        cross = np.einsum("pk,pk->p", self.p, logs) + self._tail * np.log(_tail(np.exp(logs)))
        nats: Array = np.maximum(self._negative_entropy - cross, 0)
        return nats


def of_positions(
    nats: Array,
    same: Array,
    *,
    documents: Sequence[int],
    k: int,
    covered: float,
    kind: Literal["capped", "reference ids"] = "reference ids",
) -> Divergence:
    """The divergence over positions. `same`: whether the most probable token is the reference's, at each of them."""
    return Divergence(
        mean=float(nats.mean()),
        median=float(np.median(nats)),
        p99=float(np.quantile(nats, 0.99)),
        k=k,
        covered=covered,
        same_top1=float(same.mean()),
        kind=kind,
        kld=_by_document(nats, documents, highest=math.inf),
        top1=_by_document(same, documents, highest=1.0),
    )


def _tail(probabilities: Array) -> Array:
    tail: Array = np.maximum(1 - probabilities.sum(axis=1), _TAIL)
    return tail


def _capped(p: Array, ids: Array, arm_ids: Array, arm_q: Array) -> Array:
    """The arm's probabilities of the reference's tokens, as near to the reference as its own top tokens allow.

    A token that the arm does not list has at most the probability of the last that it lists. The arm's remaining
    probability goes to those tokens and to the tail in the reference's proportions, up to that cap. No other
    distribution makes the divergence smaller (water-filling: Boyd and Vandenberghe 2004, section 5.5.3), so it is a
    lower bound.
    """
    same = ids[:, :, None] == arm_ids[:, None, :]
    listed = same.any(axis=2)
    q = np.where(listed, np.take_along_axis(arm_q, same.argmax(axis=2), axis=1), 0)
    cap = arm_q.min(axis=1, keepdims=True)
    unlisted = np.where(listed, 0, p)
    falling = np.pad(-np.sort(-unlisted, axis=1), ((0, 0), (0, 1)))
    above = np.cumsum(falling, axis=1) - falling
    # if as many of the most probable ones as the column's number are at the cap, the others get so much of their p
    remaining = 1 - q.sum(axis=1, keepdims=True) - cap * np.arange(falling.shape[1])
    scale = np.maximum(remaining, _TAIL) / np.maximum(1 - (p - unlisted).sum(axis=1, keepdims=True) - above, _TAIL)
    at_cap = (scale * falling > cap).sum(axis=1, keepdims=True)
    of_unlisted: Array = np.minimum(cap, np.take_along_axis(scale, at_cap, axis=1) * unlisted)
    return q + of_unlisted


def _by_document(values: Array, documents: Sequence[int], highest: float) -> Estimate | None:
    """The mean of values from 0 to `highest` with its interval. None where documents are too few for one."""
    starts = np.cumsum([0, *documents[:-1]])
    try:
        mean = ratio_of_sums(np.add.reduceat(values.astype(np.float64), starts), np.array(documents, dtype=np.float64))
    except UsageError:
        return None
    return replace(mean, low=max(mean.low, 0.0), high=min(mean.high, highest))
