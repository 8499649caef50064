"""What every rank of vLLM says of itself: a class that vLLM adds to its workers, and what reads the answers.

Its method is called by name, and the answer is text: vLLM sends neither functions nor objects to another process unless
VLLM_ALLOW_INSECURE_SERIALIZATION is set.
"""

from __future__ import annotations

import importlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec

from moe_eval.engines.served.package import reach
from moe_eval.engines.vllm import observe, prompt_scores
from moe_eval.frozen import frozen

# for worker_extension_cls: RandomRank also teaches the worker weights=random
EXTENSION = "moe_eval.engines.vllm.rank.Rank"
RANDOM_EXTENSION = "moe_eval.engines.vllm.random_rank.RandomRank"
METHOD = "moe_eval_observed"
SCORES = "moe_eval_hasten_scores"
_SECONDS = 60.0  # attributes are read, and one small kernel is compiled


@frozen
class Observed:
    """What was seen in the process of a rank, or of all together.

    Attributes:
        methods: names of the classes that quantise experts.
        experts: global indices of the experts that it holds. None where every rank has a part of each.
        graphs: sizes in tokens of the CUDA graphs that were captured. None where this version keeps them elsewhere.
        pid: of the process.
    """

    moe_backend: str | None
    attention_backend: str | None
    methods: tuple[str, ...]
    weight_bytes: dict[str, int] | None
    experts: tuple[int, ...] | None
    graphs: tuple[int, ...] | None
    pid: int = 0


class Rank:
    """Added to vLLM's worker, whose attributes it reads. vLLM wants no name that its worker has."""

    def moe_eval_observed(self) -> str:
        """An Observed as JSON."""
        worker: Any = self
        return msgspec.json.encode(of_model(worker.get_model(), worker.model_runner)).decode()

    def moe_eval_hasten_scores(self) -> bool:
        """See prompt_scores.hasten."""
        worker: Any = self
        return prompt_scores.hasten(worker.model_runner)


def of_model(model: Any, runner: Any = None) -> Observed:
    """What is seen in a process that has the model."""
    sizes = observe.weight_bytes(model)
    return Observed(
        moe_backend=observe.moe_backend(model),
        attention_backend=observe.attention_backend(model),
        methods=observe.moe_methods(model),
        weight_bytes=None if sizes is None else dict(sizes),
        experts=_experts(model),
        graphs=captured_graphs(runner),
        pid=os.getpid(),
    )


def ranks(llm: Any) -> tuple[Observed, ...]:
    """What every rank says, in order. Empty where this version has no such call."""
    if not hasattr(llm, "collective_rpc"):
        return ()
    return tuple(msgspec.json.decode(text, type=Observed) for text in llm.collective_rpc(METHOD, timeout=_SECONDS))


def hasten_scores(llm: Any) -> bool:
    """Whether all ranks score prompts by a kernel that reads logits once."""
    return hasattr(llm, "collective_rpc") and all(llm.collective_rpc(SCORES, timeout=_SECONDS))


def together(observed: Sequence[Observed]) -> Observed:
    """All ranks as one: names that differ are joined, bytes are summed, and a graph counts where every rank has it."""
    if not observed:
        return Observed(None, None, (), None, None, None)
    total: Counter[str] = Counter()
    for rank in observed:
        total.update(rank.weight_bytes or {})
    graphs = [set(rank.graphs) for rank in observed if rank.graphs is not None]
    return replace(
        observed[0],
        moe_backend=_joined([rank.moe_backend for rank in observed]),
        attention_backend=_joined([rank.attention_backend for rank in observed]),
        weight_bytes=dict(total) if all(rank.weight_bytes for rank in observed) else None,
        graphs=tuple(sorted(set.intersection(*graphs))) if len(graphs) == len(observed) else None,
    )


def expert_ranks(observed: Sequence[Observed]) -> tuple[int, ...] | None:
    """The rank that holds each expert. None where every rank has a part of each, or one rank all."""
    holders = {expert: rank for rank, seen in enumerate(observed) for expert in seen.experts or ()}
    is_whole = len(observed) > 1 and all(seen.experts is not None for seen in observed)
    return tuple(holders[expert] for expert in sorted(holders)) if is_whole and holders else None


def captured_graphs(runner: Any) -> tuple[int, ...] | None:
    """The sizes in tokens of the CUDA graphs of this process, which its runner or its wrappers keep by size."""
    graphs = reach(runner, "cudagraph_manager.graphs")
    if graphs is not None:
        return tuple(sorted({int(size.num_tokens) for size in graphs}))
    try:
        wrappers = [*importlib.import_module("vllm.compilation.cuda_graph").CUDAGraphWrapper._all_instances]
        entries = [item for wrapper in wrappers for item in wrapper.concrete_cudagraph_entries.items()]
        sizes = {int(size.num_tokens) for size, entry in entries if entry.cudagraph is not None}
    except (ImportError, AttributeError):
        return None
    return tuple(sorted(sizes)) if wrappers else None


def _experts(model: Any) -> tuple[int, ...] | None:
    """Global indices of the experts of the first layer of experts. None where it has them all."""
    for module in model.modules():
        local, everything = getattr(module, "local_num_experts", None), getattr(module, "global_num_experts", None)
        if local is not None and everything is not None and hasattr(module, "moe_config"):
            places = getattr(module, "_expert_map", None)
            if local == everything or places is None:
                return None
            return tuple(expert for expert, place in enumerate(places.tolist()) if place >= 0)
    return None


def _joined(names: Sequence[str | None]) -> str | None:
    return "+".join(dict.fromkeys(name for name in names if name)) or None
