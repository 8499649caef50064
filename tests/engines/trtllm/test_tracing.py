"""The command line of Nsight Systems, and what becomes of it."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_eval.engines.trtllm.tracing import NsysCommand, nsys_command, run_nsys
from moe_eval.errors import EngineError, UsageError

PROGRAM = ["lm_eval", "--model", "trtllm_moe", "--model_args", "pretrained=a b,worker=spawned"]


def test_the_whole_command_and_its_environment() -> None:
    command = nsys_command(PROGRAM, Path("/tmp/out/report"), (100, 150))
    assert command.environment == {"TLLM_PROFILE_START_STOP": "100-150", "TLLM_LLMAPI_ENABLE_NVTX": "1"}
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


NSYS = """#!{python}
import os, pathlib, sys
output = next(each.split("=", 1)[1] for each in sys.argv if each.startswith("--output="))
assert os.environ["TLLM_LLMAPI_ENABLE_NVTX"] == "1"
if "write" in sys.argv:
    pathlib.Path(output + ".nsys-rep").write_text(os.environ["TLLM_PROFILE_START_STOP"])
sys.exit(3 if "fail" in sys.argv else 0)
"""


@pytest.fixture
def nsys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in on the path that does what the profiled program's name says."""
    file = tmp_path / "bin" / "nsys"
    file.parent.mkdir()
    file.write_text(NSYS.format(python=sys.executable))
    file.chmod(0o755)
    monkeypatch.setenv("PATH", str(file.parent), prepend=":")


@pytest.fixture
def command(tmp_path: Path) -> NsysCommand:
    return nsys_command(["write"], tmp_path / "new" / "folder" / "report", (3, 9))


@pytest.mark.usefixtures("nsys")
def test_a_report_is_written_below_a_new_folder(command: NsysCommand) -> None:
    assert run_nsys(command) == command.report
    assert command.report.read_text() == "3-9"


@pytest.mark.usefixtures("nsys")
def test_a_program_that_fails(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"ended with code 3: TLLM_PROFILE_START_STOP=1-2 .* nsys profile") as failed:
        run_nsys(nsys_command(["fail"], tmp_path / "r", (1, 2)))
    assert "\n" not in str(failed.value)


@pytest.mark.usefixtures("nsys")
def test_a_capture_range_that_never_opened(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did not reach iterations 1-2"):
        run_nsys(nsys_command(["idle"], tmp_path / "r", (1, 2)))


@pytest.mark.usefixtures("nsys")
def test_an_old_report_is_not_taken_for_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "r.nsys-rep").write_text("old")
    with pytest.raises(UsageError, match="nsys recorded nothing"):
        run_nsys(nsys_command(["idle"], tmp_path / "r", (1, 2)))


def test_without_nsys(command: NsysCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="nsys is not on the PATH"):
        run_nsys(command)
    assert not command.report.parent.exists()
