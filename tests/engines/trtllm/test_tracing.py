"""The command line of Nsight Systems."""

from __future__ import annotations

import shlex
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_eval.engines.base import GenerationRequest
from moe_eval.engines.trtllm import tracing
from moe_eval.engines.trtllm.tracing import nsys_command, profile_window
from moe_eval.errors import EngineError, UsageError, WorkerDied
from tests.engines.trtllm.conftest import ALL, Load

PROGRAM = ["lm_eval", "--model", "trtllm_moe", "--model_args", "pretrained=a b,worker=spawned"]


def test_the_whole_command_and_its_environment() -> None:
    command = nsys_command(PROGRAM, Path("/tmp/out/report"), (100, 150))
    assert command.environment == {"TLLM_PROFILE_START_STOP": "100-151", "TLLM_LLMAPI_ENABLE_NVTX": "1"}
    assert command.report == Path("/tmp/out/report.nsys-rep")
    assert list(command.arguments) == [
        "nsys",
        "profile",
        "--trace=cuda,nvtx",
        "--cuda-graph-trace=node",
        "--sample=none",
        "--cpuctxsw=none",
        "--capture-range=cudaProfilerApi",
        "--capture-range-end=stop",
        "--trace-fork-before-exec=true",
        "--force-overwrite=true",
        "--output=/tmp/out/report",
        *PROGRAM,
    ]


@pytest.mark.parametrize(
    ("given", "report"),
    [
        ("r.nsys-rep", "r.nsys-rep"),
        ("r.1", "r.1.nsys-rep"),
        ("rank%q{OMPI_COMM_WORLD_RANK}", "rank%q{OMPI_COMM_WORLD_RANK}.nsys-rep"),
    ],
)
def test_the_reports_name(tmp_path: Path, given: str, report: str) -> None:
    command = nsys_command(PROGRAM, tmp_path / given, (0, 0))
    assert command.report == tmp_path / report
    assert f"--output={str(tmp_path / report).removesuffix('.nsys-rep')}" in command.arguments


WORDS = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\x00"))


@given(st.lists(WORDS, min_size=1), st.integers(0, 10**6), st.integers(0, 10**6))
def test_as_text_it_is_what_a_shell_reads(program: list[str], first: int, length: int) -> None:
    command = nsys_command(program, Path("a folder/it's"), (first, first + length))
    words = shlex.split(str(command))
    assert words == [*(f"{name}={value}" for name, value in command.environment.items()), *command.arguments]


@pytest.mark.parametrize(
    ("version", "window"),
    [("1.2.0", "7-7"), ("1.1.0", "7-7"), ("1.3.0rc8", "7-8"), ("1.4.0rc4", "7-8"), (None, "7-8"), ("own", "7-8")],
)
def test_the_window_of_one_iteration_by_version(version: str | None, window: str) -> None:
    assert profile_window((7, 7), version) == window


def test_options_of_nsys_take_the_place_of_ours() -> None:
    command = nsys_command(PROGRAM, Path("r"), (1, 2), options=("--trace=cuda-hw,nvtx", "--cuda-graph-trace=graph"))
    arguments = list(command.arguments)
    assert "--trace=cuda-hw,nvtx" in arguments
    assert "--cuda-graph-trace=graph" in arguments
    assert not {"--trace=cuda,nvtx", "--cuda-graph-trace=node"} & set(arguments)


class Profiled:
    """An LLM whose profiler fails, or answers never."""

    def __init__(self, start: Callable[[], object], stop: Callable[[], object]) -> None:
        self.start_profile: Any = lambda **_: start()
        self.stop_profile = stop


def fails() -> None:
    raise RuntimeError("RPC timed out\nafter 60 s")


def hangs() -> None:
    threading.Event().wait()


@pytest.mark.parametrize(
    ("llm", "reason"),
    [
        (Profiled(fails, print), "RuntimeError: RPC timed out after 60 s"),
        (Profiled(print, fails), "RuntimeError: RPC timed out after 60 s"),
        (Profiled(hangs, print), "TimeoutError: no answer within 0.1 s"),
        (Profiled(print, hangs), "TimeoutError: no answer within 0.1 s"),
    ],
)
def test_a_profiler_that_fails_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llm: Profiled, reason: str
) -> None:
    monkeypatch.setattr(tracing, "_PROFILE_SECONDS", 0.1)
    for recording in (tracing.captured(llm), tracing.by_library(llm, tmp_path / "trace.json")):
        with pytest.raises(EngineError) as failed, recording:
            pass
        assert str(failed.value).startswith(f"TensorRT-LLM's profiler failed ({reason}). Give worker=in_process")


def test_a_failure_of_what_is_traced_stays_the_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "_ABANDON_SECONDS", 0.1)
    for stop in (fails, hangs):
        with pytest.raises(KeyError), tracing.captured(Profiled(print, stop)):
            raise KeyError


@pytest.mark.parametrize("iterations", [(5, 4), (-1, 4), (-2, -1)])
def test_iterations_that_are_no_range(iterations: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="are no range"):
        nsys_command(PROGRAM, Path("r"), iterations)


@pytest.mark.parametrize(
    "arguments",
    [
        "pretrained=m",
        "pretrained=m,enable_layerwise_nvtx_marker=true",
        "pretrained=m,cuda_graph_batch_sizes=none",
        "pretrained=m,enable_layerwise_nvtx_marker=false,cuda_graph_batch_sizes=none",
        "pretrained=m,enable_layerwise_nvtx_marker=true,cuda_graph_batch_sizes=1:8",
    ],
)
def test_layers_are_not_named_without_markers_outside_graphs(arguments: str) -> None:
    with pytest.raises(UsageError, match=r"enable_layerwise_nvtx_marker=true and cuda_graph_batch_sizes=none"):
        nsys_command(["lm_eval", "--model_args", arguments], Path("r"), (1, 2), layers=True)


def test_layers_are_named_with_markers() -> None:
    program = ["lm_eval", "--model_args", "enable_layerwise_nvtx_marker=true,cuda_graph_batch_sizes=none"]
    command = nsys_command(program, Path("r"), (1, 2), layers=True)
    assert command == nsys_command(program, Path("r"), (1, 2))


@ALL
def test_a_window_of_one_iteration_records_it_on_every_double(
    load: Load, version: str, events: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TLLM_PROFILE_START_STOP", profile_window((3, 3), version))
    load().generate([[5, 6, 7]], GenerationRequest(4, ignore_eos=True))
    (begin,), (end,) = events("cudaProfilerStart"), events("cudaProfilerStop")
    assert begin["iteration"] == 3
    assert end["iteration"] == (5 if version == "1.3.0rc8" else 4), "an early 1.3 records one iteration more"


@pytest.mark.parametrize("version", ["1.3.0rc20"], indirect=True, scope="session")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_older_form_of_that_window_ends_a_newer_loop_and_no_run_waits(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TLLM_PROFILE_START_STOP", profile_window((3, 3), "1.2.0"))
    with pytest.raises(WorkerDied, match="The loop of TensorRT-LLM's engine in this process has ended"):
        load()
