"""In which type the key-value cache was kept, by the names of the kernels that write and read it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

Cache = Literal["fp8", "unquantised"]

# vLLM, csrc/attention/dtype_fp8.cuh: kAuto is 0, and then the cache has the type of the model
_ENUMERATOR = r"Fp8KVCacheDataType(?:E|\))(\d)"
_ATTENTION = r"(?i)flash|fmha|attention|xqa|mmha|batch_?(?:decode|prefill)|paged_?kv"
# names of TensorRT-LLM's kernels say what queries, keys and values are, and of XQA what keys and values are. What comes
# out of them may be of another type, and says nothing of the cache
_OF_CACHE = r"(?i)(?:Q?kv|kvt_)_?(E4m3|E5m2|Bfloat16|Bf16|Fp16|Fp32)"
_FP8 = r"(?i)e4m3|e5m2|fp8"
_PLAIN = r"(?i)b(?:float|f)16|half_t|__half|DF16|fp16"


def observe(names: Iterable[str]) -> Cache | None:
    """The type of the cache by the kernels of a trace.

    Kernels that write it come first: attention may read 16 bits while a cache in FP8 is unpacked elsewhere.

    Returns:
        None where no name shows it, such as those of Triton, or where names differ.
    """
    written, read_types = set[Cache](), set[Cache]()
    for name in names:
        match = re.search(_ENUMERATOR, name)
        if match:
            written.add("unquantised" if match[1] == "0" else "fp8")
        elif re.search(_ATTENTION, name) and (cache := _of_attention(name)) is not None:
            read_types.add(cache)
    types = written or read_types
    return types.pop() if len(types) == 1 else None


def _of_attention(name: str) -> Cache | None:
    match = re.search(_OF_CACHE, name)
    if match:
        return "fp8" if re.search(_FP8, match[1]) else "unquantised"
    if re.search(_FP8, name):
        return "fp8"
    return "unquantised" if re.search(_PLAIN, name) else None
