"""The public names of one version."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from . import args, sampling
from .knobs import knobs, log, own_variables
from .llm import BaseLLM
from .outputs import AbortableOutput, CompletionOutput, RequestOutput
from .versions import VERSIONS

_PROFILED = ("CPU", "GPU", "CUDA_PROFILER")


class Profiled:
    """Profiling inside the workers, which only the newest version has."""

    _executor: Any

    def start_profile(
        self,
        output_dir: str | None = None,
        num_steps: int | None = None,
        start_step: int | None = None,
        activities: list[str] | None = None,
    ) -> None:
        """Record on all ranks."""
        wanted = list(activities) if activities is not None else ["CPU", "GPU"]
        unknown = sorted(set(wanted) - set(_PROFILED))
        if unknown or not wanted:
            raise ValueError(f"activities {unknown or wanted}: they are chosen from {_PROFILED}")
        folder = None if output_dir is None else str(output_dir)
        what = {"output_dir": folder, "num_steps": num_steps, "start_step": start_step, "activities": wanted}
        self._executor.everywhere("start_profile", what)

    def stop_profile(self) -> None:
        """Stop, and return once every rank has written its trace."""
        self._executor.everywhere("stop_profile")


@dataclass(frozen=True)
class Api:
    """What the package of a version re-exports."""

    version: str
    LLM: type[Any]
    SamplingParams: type[Any]
    RequestOutput: type[Any]
    CompletionOutput: type[Any]
    llm_args: dict[str, Any]


def build(name: str) -> Api:
    """Make one version's names; called once, when its package is imported."""
    log("import", env=own_variables())
    if "hang_import" in knobs():
        threading.Event().wait()
    version = VERSIONS[name]
    classes = args.build(version)
    params = sampling.build(version)
    bases = (Profiled, BaseLLM) if version.has_profile else (BaseLLM,)
    own = {"_version": version, "_args_class": classes["TorchLlmArgs"], "_params_class": params}
    llm = type("LLM", bases, {**own, "__module__": "tensorrt_llm.llmapi.llm"})
    output = AbortableOutput if version.has_abort else RequestOutput
    return Api(knobs().get("version", name), llm, params, output, CompletionOutput, classes)
