"""Which experts a batch goes through: what its decode steps read, and whether two arms read alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_eval.errors import EngineError, UsageError
from moe_eval.evaluators.floors import expected_distinct

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Routing:
    """The routing of one batch size.

    Attributes:
        batch_size: the first prompts of the workload, run together.
        experts, top_k: of every layer with a router.
        steps: decode steps of which every prompt of the batch has a token.
        distinct: different experts per layer and decode step, mean over layers and steps; None without steps.
        independent: the same, expected of independent uniform draws (floors.expected_distinct).
        load: tokens, read and made, that went through an expert: int64, shape (layers, experts).
        effective: exp(entropy of a layer's load), mean over layers: how many equally loaded experts it amounts to;
            Hill's number of order 1 (Hill, Ecology 54(2), 1973).
        max_over_mean: load of a layer's fullest expert over the mean, mean over layers.
    """

    batch_size: int
    experts: int
    top_k: int
    steps: int
    distinct: float | None
    independent: float
    load: npt.NDArray[np.int64]
    effective: float
    max_over_mean: float

    def to_json(self) -> dict[str, Any]:
        """As a plain dictionary of JSON's types."""
        return {**vars(self), "load": self.load.tolist()}


def from_json(raw: Mapping[str, Any]) -> Routing:
    """Read what Routing.to_json wrote."""
    return Routing(**{**raw, "load": np.array(raw["load"], dtype=np.int64)})


def read(arrays: Sequence[Array], input_len: int, experts: int, batch_sizes: Sequence[int]) -> dict[int, Routing]:
    """Count experts for every batch size; each batch is the first prompts, as Workload.prompts gives them.

    Args:
        arrays: for every prompt the chosen experts as Engine.routing gives them: int, shape (tokens, layers, top_k).
            Row input_len + t belongs to decode step t, in which the batch's prompts are run together.
        input_len: tokens of every prompt.
        experts: to choose from in every layer.

    Returns:
        By batch size.

    Raises:
        UsageError: a batch of more prompts than there are, or of none.
        EngineError: the arrays cannot be the routing of these prompts.
    """
    for size in batch_sizes:
        if not 1 <= size <= len(arrays):
            raise UsageError(f"There is routing of {len(arrays)} prompts and none of a batch of {size}; route as many.")
    _check(arrays, input_len, experts)
    _, layers, top_k = arrays[0].shape
    steps = max(len(each) for each in arrays) - input_len
    seen = np.zeros((steps, layers, experts), dtype=bool)
    load = np.zeros((layers, experts), dtype=np.int64)
    every_layer = np.arange(layers)[None, :, None]
    found = {}
    for size, chosen in enumerate(arrays[: max(batch_sizes, default=0)], start=1):
        ids = chosen.astype(np.int64)
        load += np.bincount((ids + every_layer * experts).ravel(), minlength=layers * experts).reshape(layers, experts)
        made = ids[input_len:]
        steps = min(steps, len(made))
        seen[np.arange(len(made))[:, None, None], every_layer, made] = True
        if size in batch_sizes:
            found[size] = Routing(
                batch_size=size,
                experts=experts,
                top_k=top_k,
                steps=steps,
                distinct=float(seen[:steps].sum(axis=2).mean()) if steps else None,
                independent=expected_distinct(experts, top_k, size),
                load=load.copy(),
                effective=_effective(load),
                max_over_mean=float((load.max(axis=1) / load.mean(axis=1)).mean()),
            )
    return {size: found[size] for size in batch_sizes}


def fair(a: Routing, b: Routing, bound: float = 0.05, names: tuple[str, str] = ("one arm", "the other")) -> str | None:
    """Why two arms' tokens spread over too different numbers of experts for a verdict on their speed.

    Both the experts that a decode step reads and the effective number of the whole load count: at batch 1 every step
    reads top_k experts, also where a router has collapsed and the prefill's matrices have other shapes.

    Args:
        bound: the largest difference, as a share of the greater number.
        names: of the arms.

    Returns:
        A sentence, or None where they are alike.

    Raises:
        UsageError: the two are of different batch sizes.
    """
    if a.batch_size != b.batch_size:
        raise UsageError(f"Batches of {a.batch_size} and {b.batch_size} read different experts; compare equal ones.")
    if (a.distinct is None) != (b.distinct is None):
        return f"only one of {names[0]} and {names[1]} has decode steps"
    for one, two, what in (
        (a.distinct, b.distinct, "experts per layer and step"),
        (a.effective, b.effective, "equally loaded experts per layer, prompts and all,"),
    ):
        if one is not None and two is not None and abs(one - two) > bound * max(one, two):
            return f"{names[0]} reads {one:.1f} {what} and {names[1]} {two:.1f}: more than {100 * bound:g} % apart"
    return None


def _check(arrays: Sequence[Array], input_len: int, experts: int) -> None:
    for index, each in enumerate(arrays):
        if each.ndim != 3 or each.shape[1:] != arrays[0].shape[1:] or not each.size or len(each) < input_len:
            raise EngineError(
                f"The routing of prompt {index} has shape {each.shape}, which cannot be that of {input_len} tokens and "
                f"more in the layers of prompt 0 {arrays[0].shape}; please report this."
            )
        if each.min() < 0 or each.max() >= experts:
            raise EngineError(
                f"The routing of prompt {index} names experts {each.min()} to {each.max()} of {experts}; "
                "please report this."
            )


def _effective(load: Array) -> float:
    share = load / load.sum(axis=1, keepdims=True)
    # an expert without tokens adds nothing: x log x goes to 0
    entropy = -(share * np.log(np.where(share > 0, share, 1))).sum(axis=1)
    return float(np.exp(entropy).mean())
