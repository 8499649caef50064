"""Labels of what actually runs, read from the built engine rather than from the user's settings."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from moe_eval.checkpoint import precision
from moe_eval.engines import weights
from moe_eval.engines.served.output import WorkerOutput
from moe_eval.engines.served.package import reach
from moe_eval.machine.hardware import Gpu

log = logging.getLogger(__name__)

# set by MPI launchers for every process they start
_LAUNCHED = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "TLLM_SPAWN_PROXY_PROCESS", "tllm_mpi_size")
_MODEL = "_executor.engine.model_engine.model"
_UNPACKS = ("MARLIN", "W4A16", "W8A16")  # in the name of a class of experts
# what it prints where a backend of experts takes the place of the requested one, before and since its resolver
_SUBSTITUTED = r"[^\]\n]*(?:Using \w+ instead|cannot serve this layer).*"
_Label = TypeVar("_Label")


def launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a launcher (mpirun, trtllm-llmapi-launch) started ranks, maybe on other machines."""
    if environment.get("TLLM_SPAWN_PROXY_PROCESS") == "1":
        return True
    return any(environment.get(name, "1") != "1" for name in _LAUNCHED)


class Observer:
    """Reads labels. What a version keeps in another place or form has no label, which is no reason to fail.

    Attributes:
        failures: a line for every label that could not be read.
    """

    def __init__(self) -> None:
        self.failures: list[str] = []

    def label(self, name: str, read: Callable[[Any], _Label | None], llm: Any) -> _Label | None:
        """What `read` makes of the library's LLM, or None."""
        try:
            return read(llm)
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            self.failures.append(f"{name}: {reason}")
            log.warning("TensorRT-LLM does not show %s (%s). The record has none.", name, reason)
            return None


def in_process(llm: Any) -> bool:
    """Whether the model is in this process."""
    return reach(llm, _MODEL) is not None


def worker(llm: Any, processes: int) -> Literal["in_process", "spawned"] | None:
    """Where the engine runs: in this process, or in `processes` others that it started."""
    if in_process(llm):
        return "in_process"
    return "spawned" if processes or launched() else None


def _experts(llm: Any) -> Iterable[Any]:
    """The modules of routed experts of every layer, wherever the model's family has them."""
    model = reach(llm, _MODEL)
    if model is None:
        return
    for name, module in model.named_modules():
        if name.rpartition(".")[2] == "experts":
            yield module


def moe_backend(llm: Any) -> str | None:
    """The classes of the experts, or None if the model is in another process.

    The wrapper ConfigurableMoE holds what computes as its `backend`. The class name is reported as it is, because
    packages and class hierarchies move between versions.
    """
    return "+".join(dict.fromkeys(type(getattr(part, "backend", part)).__name__ for part in _experts(llm))) or None


def executed(held: str, requested: str, observed: str | None, gpus: Sequence[Gpu]) -> str:
    """The precision in which the experts compute a checkpoint of precision `held`.

    Args:
        requested: the implementation of experts, and `observed` its classes.

    Source: TensorRT-LLM. Its Triton kernels for block scales, of SM120, never quantise activations
    (fused_moe_triton_fp8_block_scale.py). Marlin's, and its W4A16 ones, unpack weights. MXFP4 is W4A16 before SM100.
    """
    names = (observed or "").upper()
    unpacks = any(mark in names for mark in _UNPACKS) or (held == "fp8_block" and "TRITONFP8BLOCKSCALE" in names)
    if unpacks or (held == "mxfp4" and any(gpu.sm < 100 for gpu in gpus)):
        return precision.WEIGHT_ONLY.get(held, held)
    return precision.executed(held, requested)


def moe_degraded_from(llm: Any, output: WorkerOutput | None = None) -> str | None:
    """Why another backend than the requested one runs. None where the version has no report, or none of this.

    Source: TensorRT-LLM's MoEResolutionReport, which a layer's experts or their backend hold. A spawned worker's is out
    of reach, and the warnings that it prints stand in for it.
    """
    parts = [part for experts in _experts(llm) for part in (experts, getattr(experts, "backend", None))]
    holders = (holder for part in parts for holder in (part, *getattr(part, "__dict__", {}).values()))
    reasons = dict.fromkeys(str(holder.degraded_from) for holder in holders if getattr(holder, "degraded_from", None))
    return "+".join(reasons) or (output.last(_SUBSTITUTED) if output is not None else None)


def moe_tactic(llm: Any) -> str | None:
    """The tactic of the experts (from 1.4.0rc4 on), or None where they have none."""
    parts = (getattr(experts, "backend", experts) for experts in _experts(llm))
    tactics = (tactic for part in parts if (tactic := getattr(part, "tactic", None)) is not None)
    return "+".join(dict.fromkeys(str(getattr(tactic, "value", tactic)) for tactic in tactics)) or None


def weight_bytes(llm: Any) -> Mapping[str, int] | None:
    """Bytes of the loaded weights by part, or None if the model is in another process."""
    model = reach(llm, _MODEL)
    return None if model is None else weights.by_part(model)


def kv_cache_tokens(llm: Any) -> int | None:
    """Tokens that the key-value cache holds, or None if the engine is in another process or does not say.

    The manager's statistics add up the blocks of all windows of attention, and of recurrent layers. So they say it only
    of a model with one window and a plain manager.
    """
    manager = reach(llm, "_executor.engine.kv_cache_manager")
    if type(manager).__name__ not in ("KVCacheManager", "KVCacheManagerV2"):
        return None
    statistics: Any = manager.get_kv_cache_stats()
    blocks, size = int(statistics.max_num_blocks), int(statistics.tokens_per_block)
    windows = len(statistics.num_free_blocks_per_window_size)
    return blocks * size if windows == 1 and blocks and size else None


def cuda_graph_batch_sizes(llm: Any) -> tuple[int, ...] | None:
    """The sizes that run as CUDA graphs, as the constructor filled them in, or None if it does not say.

    The constructor's list may go beyond the largest batch. Larger sizes are never recorded. With padding the largest
    batch is recorded in their place.

    Source: TensorRT-LLM, _filter_cuda_graph_batch_sizes of _torch/pyexecutor/model_engine.py.
    """
    args: Any = getattr(llm, "args", None)
    if hasattr(args, "cuda_graph_config") and args.cuda_graph_config is None:
        return ()
    stated, largest = reach(args, "cuda_graph_config.batch_sizes"), reach(args, "max_batch_size")
    if stated is None:
        return None
    sizes = sorted(map(int, stated))
    if largest is None:
        return tuple(sizes)
    recorded = {size for size in sizes if size <= largest}
    if cuda_graph_padding(llm) and len(recorded) < len(sizes):
        recorded.add(int(largest))
    return tuple(sorted(recorded))


def cuda_graph_padding(llm: Any) -> bool | None:
    """Whether batches between two sizes run as the larger one, or None if the constructor does not say."""
    padding: bool | None = reach(llm, "args.cuda_graph_config.enable_padding")
    return padding


def loop(llm: Any) -> threading.Thread | None:
    """The thread of an engine's loop, or None if it is in another process."""
    thread = reach(llm, "_executor.engine.worker_thread")
    return thread if isinstance(thread, threading.Thread) else None


def attention_backend(llm: Any) -> str | None:
    """The attention implementation as the constructor has it."""
    name = reach(llm, "args.attn_backend")
    return None if name is None else str(name)
