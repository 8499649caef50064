"""In which type the key-value cache was kept, by the names of the kernels that write and read it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

Cache = Literal["fp8", "unquantised"]

# vLLM, csrc/attention/dtype_fp8.cuh: kAuto is 0, and then the cache has the type of the model
_ENUMERATOR = re.compile(r"Fp8KVCacheDataType(?:E|\))(\d)")
_ATTENTION = re.compile(r"flash|fmha|attention|xqa|mmha|batch_?(?:decode|prefill)|paged_?kv", re.IGNORECASE)
# names of TensorRT-LLM's kernels say what queries, keys and values are, and of XQA what keys and values are. What comes
# out of them may be of another type, and says nothing of the cache
_OF_CACHE = re.compile(r"(?:Q?kv|kvt_)_?(E4m3|E5m2|Bfloat16|Bf16|Fp16|Fp32)", re.IGNORECASE)
_FP8 = re.compile(r"e4m3|e5m2|fp8", re.IGNORECASE)
_PLAIN = re.compile(r"b(?:float|f)16|half_t|__half|DF16|fp16", re.IGNORECASE)


def observe(names: Iterable[str]) -> Cache | None:
    """The type of the cache by the kernels of a trace.

    Kernels that write it come first: attention may read 16 bits while a cache in FP8 is unpacked elsewhere.

    Returns:
        None where no name shows it, such as those of Triton, or where names differ.
    """
    written, read_types = set[Cache](), set[Cache]()
    for name in names:
        match = _ENUMERATOR.search(name)
        if match:
            written.add("unquantised" if match[1] == "0" else "fp8")
        elif _ATTENTION.search(name) and (cache := _of_attention(name)) is not None:
            read_types.add(cache)
    types = written or read_types
    return types.pop() if len(types) == 1 else None


def _of_attention(name: str) -> Cache | None:
    match = _OF_CACHE.search(name)
    if match:
        return "fp8" if _FP8.search(match[1]) else "unquantised"
    if _FP8.search(name):
        return "fp8"
    return "unquantised" if _PLAIN.search(name) else None
