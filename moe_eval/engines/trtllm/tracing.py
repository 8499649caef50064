"""Traces of TensorRT-LLM's kernels by its own profiler, or by Nsight Systems around a whole command."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from moe_eval.checkpoint.precision import is_in
from moe_eval.engines.served.processes import within
from moe_eval.errors import EngineError, UsageError
from moe_eval.machine import nsys
from moe_eval.machine.nsys import NsysCommand

_PROFILE_SECONDS = 120.0  # a call of the library's profiler may wait a minute for its workers
_ABANDON_SECONDS = 5.0  # if what was traced has failed


def profile_window(iterations: tuple[int, int], version: str | None = None) -> str:
    """TLLM_PROFILE_START_STOP for the first and the last iteration to record.

    The end is exclusive, and a start that is the end trips an assertion in the executor's loop. Before 1.3 the end was
    inclusive. Of an unknown version the newer form is right: an older one records an iteration more. So do those of 1.3
    up to pull request 13744, whose number in the releases is not known.

    Source: TensorRT-LLM, _torch/pyexecutor/py_executor.py, where the stop is tested before the start.
    """
    first, last = iterations
    if not 0 <= first <= last:
        raise UsageError(f"Iterations {first} to {last} are no range. Give the first and the last one to record.")
    is_inclusive = not is_in(">=1.3.0rc0", version)
    return f"{first}-{last if is_inclusive else last + 1}"


def nsys_command(
    program: Sequence[str],
    report: Path,
    iterations: tuple[int, int],
    *,
    layers: bool = False,
    version: str | None = None,
    options: Sequence[str] = (),
) -> NsysCommand:
    """The command that profiles some iterations of TensorRT-LLM's executor, whichever process it runs in.

    The worker itself opens and closes the capture range at these iterations, counted after its warm-up. A profiler
    call in the parent process would not reach a spawned worker. Kernels inside CUDA graphs are recorded one by one.
    torch's profiler stays off, because both would use CUPTI.

    Args:
        program: the command to run, such as ["lm_eval", "--model", "trtllm_moe", ...].
        report: where the report goes. `.nsys-rep` is added if it is missing. With several GPUs, put the launcher
            before this command and `%q{OMPI_COMM_WORLD_RANK}` into the name, for one report a rank.
        iterations: the first and the last one to record.
        layers: attribute kernels to layers. `program` has to set enable_layerwise_nvtx_marker=true and
            cuda_graph_batch_sizes=none, because the markers do not run when a graph is replayed. The timings of such a
            run are not those of the deployed engine.
        version: of TensorRT-LLM, which the window depends on.
        options: of nsys, in place of those here that have the same name.
        version: of TensorRT-LLM, see profile_window.

    Source: TensorRT-LLM, docs/source/developer-guide/perf-analysis.md and examples/layer_wise_benchmarks.
    """
    window = profile_window(iterations, version)
    if layers and not _sets_markers(program):
        raise UsageError(
            "Layers have no names in this trace. Add enable_layerwise_nvtx_marker=true and cuda_graph_batch_sizes=none "
            "to the model arguments."
        )
    if report.suffix != ".nsys-rep":
        report = report.with_name(f"{report.name}.nsys-rep")
    environment = {"TLLM_PROFILE_START_STOP": window, "TLLM_LLMAPI_ENABLE_NVTX": "1"}
    return NsysCommand(environment, nsys.arguments(program, report, options=options), report)


def _sets_markers(program: Sequence[str]) -> bool:
    text = " ".join(program).lower()
    return bool(
        re.search(r"enable_layerwise_nvtx_marker=(true|on|1)\b", text)
        and re.search(r"cuda_graph_batch_sizes=(none|off|0|false)(?![\w:])", text)
    )


@contextmanager
def by_library(llm: Any, target: Path) -> Iterator[None]:
    """The library's own profiler in its workers, a prototype of 2026."""
    if not hasattr(llm, "start_profile"):
        raise UsageError(
            "This version of TensorRT-LLM cannot trace its spawned workers. Give worker=in_process, or profile the "
            "whole command with nsys."
        )
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        with _profiling(llm, output_dir=folder, activities=["CPU", "GPU"]):
            yield
        traces = sorted(Path(folder).rglob("*.json*"))
        if not traces:
            raise EngineError(
                "TensorRT-LLM's profiler left no trace: no iteration ran inside it, its workers write to another "
                "machine's disk, or another profiler (nsys) holds CUPTI. Trace more iterations, on one machine, "
                "without nsys."
            )
        traces[0].replace(target)


@contextmanager
def captured(llm: Any) -> Iterator[None]:
    """Nsight Systems' capture range, opened by the library in all of its workers, a prototype of 2026."""
    if not hasattr(llm, "start_profile"):
        raise UsageError(
            "This version of TensorRT-LLM opens no capture in its spawned workers. Install one since May 2026, or "
            "put nsys around the command as the page of TensorRT-LLM says."
        )
    # without torch's profiler, which would use CUPTI as well
    with _profiling(llm, activities=["CUDA_PROFILER"]):
        yield


@contextmanager
def _profiling(llm: Any, **settings: object) -> Iterator[None]:
    """The library's profiler around what runs inside. After a failure in there, it is not waited for long."""
    _profiler_call(partial(llm.start_profile, **settings), _PROFILE_SECONDS)
    try:
        yield
    except BaseException:
        with suppress(EngineError):
            _profiler_call(llm.stop_profile, _ABANDON_SECONDS)
        raise
    _profiler_call(llm.stop_profile, _PROFILE_SECONDS)


def _profiler_call(call: Callable[[], object], limit: float) -> None:
    try:
        within(limit, call)
    except Exception as error:  # a prototype: it may fail in any way, and it is no reason to lose what was measured
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise EngineError(
            f"TensorRT-LLM's profiler failed ({reason}). Give worker=in_process, or put nsys around the whole command."
        ) from error
