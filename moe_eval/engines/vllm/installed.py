"""Imports vllm with the right environment, and inspects the installed version."""

from __future__ import annotations

import dataclasses
import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from moe_eval.engines.served.library import expected_api, import_library
from moe_eval.engines.vllm.traits import VLLM

# read when an LLM is built: whether the engine core is a process of its own
MULTIPROCESSING = "VLLM_ENABLE_V1_MULTIPROCESSING"
# vLLM logs to standard output by default, where results are printed
_LOG_STREAM = ("VLLM_LOGGING_STREAM", "ext://sys.stderr")


@dataclass(frozen=True)
class Library:
    """What the installed version offers.

    Attributes:
        fields: the settings of EngineArgs by name.
        quantizations: what `quantization` takes.
        final_only: the output kind that returns a request only when it is finished.
    """

    version: str
    module: ModuleType
    fields: Mapping[str, dataclasses.Field[Any]]
    quantizations: frozenset[str]
    final_only: Any


def load(*, in_process: bool) -> Library:
    """Import vllm and inspect it.

    Args:
        in_process: run the engine in this process. vLLM reads this when an LLM is built.

    Raises:
        UsageError: it cannot be imported, or has another API than this engine knows.
    """
    os.environ[MULTIPROCESSING] = "0" if in_process else "1"
    os.environ.setdefault(*_LOG_STREAM)
    module = import_library(VLLM)
    version = str(getattr(module, "__version__", "of an unknown version"))
    with expected_api(VLLM, version):
        quantization = importlib.import_module("vllm.model_executor.layers.quantization")
        return Library(
            version=version,
            module=module,
            fields={field.name: field for field in dataclasses.fields(module.EngineArgs) if field.name[0] != "_"},
            quantizations=frozenset(map(str, quantization.QUANTIZATION_METHODS)),
            final_only=importlib.import_module("vllm.sampling_params").RequestOutputKind.FINAL_ONLY,
        )
