"""Which experts a batch goes through, and how many its decode steps read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_eval.errors import EngineError, UsageError
from moe_eval.evaluators.floors import expected_distinct
from moe_eval.records.shape_latency import Routing

Array = npt.NDArray[Any]


def read(
    arrays: Sequence[Array],
    input_len: int,
    experts: int,
    batch_sizes: Sequence[int],
    expert_ranks: Sequence[int] | None = None,
) -> dict[int, Routing]:
    """Count experts for every batch size; each batch is the first prompts, as Workload.prompts gives them.

    Args:
        arrays: for every prompt the chosen experts as Engine.routing gives them: int, shape (tokens, layers, top_k).
            Row input_len + t belongs to decode step t, in which the batch's prompts are run together.
        input_len: tokens of every prompt.
        experts: to choose from in every layer.
        expert_ranks: the rank that holds each expert. None where every rank has a part of each.

    Returns:
        By batch size.

    Raises:
        UsageError: a batch of more prompts than there are, or of none.
        EngineError: the arrays cannot be the routing of these prompts.
    """
    for size in batch_sizes:
        if not 1 <= size <= len(arrays):
            raise UsageError(f"There is routing of {len(arrays)} prompts and none of a batch of {size}. Route as many.")
    _check(arrays, input_len, experts)
    _, layers, top_k = arrays[0].shape
    steps = max(map(len, arrays)) - input_len
    chosen_in_step = np.zeros((steps, layers, experts), dtype=bool)
    load = np.zeros((layers, experts), dtype=np.int64)
    every_layer = np.arange(layers)[None, :, None]
    by_size = {}
    for size, chosen in enumerate(arrays[: max(batch_sizes, default=0)], start=1):
        ids = chosen.astype(np.int64)
        load += np.bincount((ids + every_layer * experts).ravel(), minlength=layers * experts).reshape(layers, experts)
        decoded = ids[input_len:]
        steps = min(steps, len(decoded))
        chosen_in_step[np.arange(len(decoded))[:, None, None], every_layer, decoded] = True
        if size in batch_sizes:
            by_size[size] = Routing(
                batch_size=size,
                experts=experts,
                top_k=top_k,
                steps=steps,
                distinct=float(chosen_in_step[:steps].sum(axis=2).mean()) if steps else None,
                independent=expected_distinct(experts, top_k, size),
                load=tuple(map(tuple, load.tolist())),
                effective=_effective(load),
                max_over_mean=_fullest(load),
                rank_load=tuple(_by_rank(load, expert_ranks).sum(axis=0).tolist()) if expert_ranks else (),
                rank_max_over_mean=_fullest(_by_rank(load, expert_ranks)) if expert_ranks else None,
            )
    return {size: by_size[size] for size in batch_sizes}


def _check(arrays: Sequence[Array], input_len: int, experts: int) -> None:
    for index, array in enumerate(arrays):
        if array.ndim != 3 or array.shape[1:] != arrays[0].shape[1:] or not array.size or len(array) < input_len:
            raise EngineError(
                f"The routing of prompt {index} has shape {array.shape}, which cannot be that of {input_len} tokens "
                f"and more in the layers of prompt 0 {arrays[0].shape}. Please report this."
            )
        if array.min() < 0 or array.max() >= experts:
            raise EngineError(
                f"The routing of prompt {index} names experts {array.min()} to {array.max()} of {experts}. "
                "Please report this."
            )


def _by_rank(load: Array, expert_ranks: Sequence[int]) -> Array:
    """Tokens by layer and rank, of those by layer and expert."""
    ranks = np.asarray(expert_ranks)
    if len(ranks) != load.shape[1]:
        raise EngineError(f"The ranks hold {len(ranks)} experts of {load.shape[1]}. Please report this.")
    return np.stack([load[:, ranks == rank].sum(axis=1) for rank in range(int(ranks.max()) + 1)], axis=1)


def _fullest(load: Array) -> float:
    return float((load.max(axis=1) / load.mean(axis=1)).mean())


def _effective(load: Array) -> float:
    share = load / load.sum(axis=1, keepdims=True)
    # an expert without tokens adds nothing: x log x goes to 0
    entropy = -(share * np.log(np.where(share > 0, share, 1))).sum(axis=1)
    return float(np.exp(entropy).mean())
