"""Kernels of what runs: by torch's profiler where the engine is in this process, by the library's own where it has one,
and by Nsight Systems around a whole command."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moe_eval.errors import EngineError, UsageError
from moe_eval.machine import nsys
from moe_eval.machine.nsys import NsysCommand

Export = Callable[[Path], None]


def nsys_command(
    program: Sequence[str], report: Path, iterations: tuple[int, int], *, layers: bool = False
) -> NsysCommand:
    """The command that profiles some iterations of TensorRT-LLM's executor, whichever process it runs in.

    The worker itself opens and closes the capture range at these iterations, counted after its warm-up; a call of the
    profiler in the process that asks would say nothing to a spawned worker. Kernels inside CUDA graphs are recorded one
    by one. torch's profiler is not asked for: both would use CUPTI.

    Args:
        program: the command to run, such as ["lm_eval", "--model", "trtllm_moe", ...].
        report: where the report goes; `.nsys-rep` is added where it is missing. With several GPUs put the launcher
            before this command and `%q{OMPI_COMM_WORLD_RANK}` into the name, for one report a rank.
        iterations: the first and the last one to record.
        layers: for a run of its own that attributes kernels to layers: `program` has to set
            enable_layerwise_nvtx_marker=true and cuda_graph_batch_sizes=none, since the markers do not run when a graph
            is replayed, and its timings are not those of the deployed engine.

    Source: TensorRT-LLM, docs/source/developer-guide/perf-analysis.md and examples/layer_wise_benchmarks.

    Raises:
        UsageError: the iterations make no range.
    """
    first, last = iterations
    if not 0 <= first <= last:
        raise UsageError(f"Iterations {first} to {last} are no range; give the first and the last one to record.")
    if layers and not _sets_markers(program):
        raise UsageError(
            "Layers are named only with enable_layerwise_nvtx_marker=true and cuda_graph_batch_sizes=none among the "
            "model arguments; add both."
        )
    if report.suffix != ".nsys-rep":
        report = report.with_name(f"{report.name}.nsys-rep")
    environment = {"TLLM_PROFILE_START_STOP": f"{first}-{last}", "TLLM_LLMAPI_ENABLE_NVTX": "1"}
    return NsysCommand(environment, nsys.arguments(program, report), report)


def _sets_markers(program: Sequence[str]) -> bool:
    text = " ".join(program).lower()
    return bool(
        re.search(r"enable_layerwise_nvtx_marker=(true|on|1)\b", text)
        and re.search(r"cuda_graph_batch_sizes=(none|off|0|false)(?![\w:])", text)
    )


def run_nsys(command: NsysCommand) -> Path:
    """Run it, its output on this process's own, and return the report.

    Raises:
        UsageError: nsys is not installed, or the command ended without a report: its capture range never opened.
        EngineError: the profiled program failed.
    """
    if shutil.which(command.arguments[0]) is None:
        raise UsageError(
            "nsys is not on the PATH; install NVIDIA Nsight Systems (it comes with the CUDA toolkit and with "
            "TensorRT-LLM's containers)."
        )
    command.report.parent.mkdir(parents=True, exist_ok=True)
    command.report.unlink(missing_ok=True)  # one of an earlier run would pass for this one's
    done = subprocess.run(command.arguments, env={**os.environ, **command.environment}, check=False)
    if done.returncode:
        raise EngineError(f"The profiled command ended with code {done.returncode}: {command}")
    if "%" not in command.report.name and not command.report.is_file():
        span = command.environment["TLLM_PROFILE_START_STOP"]
        raise UsageError(
            f"nsys recorded nothing: the engine did not reach iterations {span} after its warm-up; give a smaller "
            "range or more work."
        )
    return command.report


@contextmanager
def in_process() -> Iterator[Export]:
    """torch's profiler in this process, which sees the engine's thread as well."""
    import torch

    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    # without it operators of other threads are missing; kernels are recorded whoever launched them
    config = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
    with torch.profiler.profile(activities=activities, experimental_config=config) as profiler:
        yield lambda target: profiler.export_chrome_trace(str(target))
        if torch.cuda.is_available():
            torch.cuda.synchronize()


@contextmanager
def by_library(llm: Any, target: Path) -> Iterator[Export]:
    """The library's own profiler in its workers, a prototype of 2026.

    Raises:
        UsageError: this version has none.
        EngineError: it left no trace.
    """
    if not hasattr(llm, "start_profile"):
        raise UsageError(
            "This TensorRT-LLM cannot trace its spawned workers from here; give worker=in_process, or profile the "
            "whole command with nsys."
        )
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        llm.start_profile(output_dir=folder, activities=["CPU", "GPU"])
        try:
            yield lambda file: None
        finally:
            llm.stop_profile()
        traces = sorted(Path(folder).rglob("*.json*"))
        if not traces:
            raise EngineError("TensorRT-LLM's profiler left no trace.")
        traces[0].replace(target)
