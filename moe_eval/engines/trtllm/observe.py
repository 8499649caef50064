"""Labels of what actually runs, read from the built engine rather than from the user's settings."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any, Literal

from moe_eval.engines import weights
from moe_eval.engines.served.package import reach

# set by MPI launchers for every process they start
_LAUNCHED = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "TLLM_SPAWN_PROXY_PROCESS", "tllm_mpi_size")
_MODEL = "_executor.engine.model_engine.model"


def launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a launcher (mpirun, trtllm-llmapi-launch) started ranks, maybe on other machines."""
    if environment.get("TLLM_SPAWN_PROXY_PROCESS") == "1":
        return True
    return any(environment.get(name, "1") != "1" for name in _LAUNCHED)


def worker(llm: Any, processes: int) -> Literal["in_process", "spawned"] | None:
    """Where the engine runs: in this process, or in `processes` others that it started."""
    if reach(llm, _MODEL) is not None:
        return "in_process"
    return "spawned" if processes or launched() else None


def moe_backend(llm: Any) -> str | None:
    """The classes of the experts, or None if the model is in another process.

    The wrapper ConfigurableMoE holds what computes as its `backend`. The class name is reported as it is, because
    packages and class hierarchies move between versions.
    """
    experts = (reach(layer, "mlp.experts") for layer in reach(llm, f"{_MODEL}.model.layers") or ())
    names = dict.fromkeys(type(getattr(part, "backend", part)).__name__ for part in experts if part is not None)
    return "+".join(names) or None


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
    try:
        statistics: Any = manager.get_kv_cache_stats()
        blocks, size = int(statistics.max_num_blocks), int(statistics.tokens_per_block)
        windows = len(statistics.num_free_blocks_per_window_size)
    except Exception:  # a private interface, of which a version may lack any part: no label is worth a failed load
        return None
    return blocks * size if windows == 1 and blocks and size else None


def cuda_graph_batch_sizes(llm: Any) -> tuple[int, ...] | None:
    """The sizes that run as CUDA graphs, as the constructor filled them in, or None if it does not say.

    The constructor's list goes beyond the largest batch, and larger sizes are never recorded.
    """
    args: Any = getattr(llm, "args", None)
    if hasattr(args, "cuda_graph_config") and args.cuda_graph_config is None:
        return ()
    sizes, largest = reach(args, "cuda_graph_config.batch_sizes"), reach(args, "max_batch_size")
    return None if sizes is None else tuple(int(size) for size in sizes if largest is None or size <= largest)


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
