"""The installed vllm: imported with the right environment, and looked at before it is trusted."""

from __future__ import annotations

import dataclasses
import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from moe_eval.errors import UsageError

FLOOR = "0.18"
# read when an LLM is built: whether the engine core is a process of its own
MULTIPROCESSING = "VLLM_ENABLE_V1_MULTIPROCESSING"
# vLLM logs to standard output unless told otherwise, and there results are printed
_LOG_STREAM = ("VLLM_LOGGING_STREAM", "ext://sys.stderr")


@dataclass(frozen=True)
class Library:
    """What the installed version offers.

    Attributes:
        version: as it says itself.
        fields: the settings of EngineArgs by name, as dataclasses.Field.
        quantizations: what `quantization` takes.
        final_only: the output kind that gives nothing of a request before it is finished.
    """

    version: str
    module: ModuleType
    fields: Mapping[str, Any]
    quantizations: frozenset[str]
    final_only: Any


def load(*, in_process: bool) -> Library:
    """Import vllm and look at what it has.

    Args:
        in_process: run the engine in this process, which has to be said before an LLM is built.

    Raises:
        UsageError: it cannot be imported, or has another API than this engine knows.
    """
    os.environ[MULTIPROCESSING] = "0" if in_process else "1"
    os.environ.setdefault(*_LOG_STREAM)
    try:
        module = importlib.import_module("vllm")
    # whatever its shared libraries and torch raise where they do not fit this machine
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UsageError(
            f"vLLM is installed but cannot be imported ({type(error).__name__}: {reason}); install it again with the "
            "torch and CUDA that it asks for."
        ) from error
    version = str(getattr(module, "__version__", "of an unknown version"))
    try:
        quantization = importlib.import_module("vllm.model_executor.layers.quantization")
        return Library(
            version=version,
            module=module,
            fields={each.name: each for each in dataclasses.fields(module.EngineArgs) if each.name[0] != "_"},
            quantizations=frozenset(map(str, quantization.QUANTIZATION_METHODS)),
            final_only=importlib.import_module("vllm.sampling_params").RequestOutputKind.FINAL_ONLY,
        )
    except (AttributeError, ImportError, TypeError) as error:
        raise UsageError(
            f"vLLM {version} has another API than moe_eval knows ({error}); use a version from {FLOOR} to 0.22."
        ) from error
