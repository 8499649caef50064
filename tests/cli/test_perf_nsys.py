"""`moe-eval perf --mode nsys`: the commands it prints, the one iteration it runs inside them, and what is refused."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_eval import cli
from moe_eval.cli.options.commands import PERF
from moe_eval.cli.options.measuring import PerfOptions
from moe_eval.cli.request import request_of
from moe_eval.engines import registry
from moe_eval.engines.base import Completion, EngineSettings, GenerationRequest
from moe_eval.errors import EngineError
from moe_eval.machine import hardware
from moe_eval.machine.hardware import Gpu
from moe_eval.records.labels import EngineFacts
from moe_eval.runner.arm_process import ArmProcess
from moe_eval.runner.request import ArmsRequest
from tests.cli.commands import Command, Ended
from tests.conftest import SHIPPED
from tests.doubles import arm_process

H100 = Gpu("NVIDIA H100 80GB HBM3", "9.0", 80 << 30, None)
FACTS = replace(arm_process.FACTS, device="cuda:0")
SMALL = ["--input_len", "16", "--output_len", "4", "--dataset", "moe_sample"]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the command in this process as if these were its arguments; no engine needs to be installed."""
    monkeypatch.setattr(registry, "check", registry.named)
    monkeypatch.delenv("NSYS_PROFILING_SESSION_ID", raising=False)

    def run(*arguments: str, gpus: tuple[Gpu, ...] = ()) -> Ended:
        monkeypatch.setattr(hardware, "gpus", lambda: gpus)
        folder = tmp_path / "an out"
        typed = ["perf", "--mode", "nsys", "--output_dir", str(folder), *SMALL, *arguments]
        monkeypatch.setattr(sys, "argv", ["moe-eval", *typed])
        code = cli.main()
        return Ended(code, folder, *capsys.readouterr())

    return run


def parsed(arguments: Sequence[str]) -> tuple[PerfOptions, ArmsRequest]:
    """What the command makes of its arguments: its options and the arms."""
    options = PERF.read(arguments[1:])
    return options, request_of(options).arms


def test_outside_it_prints_a_command_for_every_precision_and_shape_that_does_just_that_one(
    command: Command, tmp_path: Path
) -> None:
    model = shutil.copytree(SHIPPED, tmp_path / "it's a model")
    arms_typed = ["--model_path", str(model), "--precisions", "bf16,fp32", "--batch_size=1,2"]
    engine_typed = ["--engine", "transformers", "--model_args", "attn_implementation=eager"]
    ended = command(*arms_typed, *engine_typed, "--warmup_iterations", "7")
    assert (ended.code, ended.err) == (0, "")
    typed, arms = parsed(sys.argv[1:])
    singles, reports = [], []
    for line in ended.out.splitlines():
        words = shlex.split(line)
        at = words.index("moe-eval")
        assert words[:2] == ["nsys", "profile"]
        options = words[2:at]
        assert {"--cuda-graph-trace=node", "--trace=cuda,nvtx", "--capture-range=cudaProfilerApi"} <= set(options)
        (report,) = [Path(word.removeprefix("--output=")) for word in options if word.startswith("--output=")]
        reports.append(report)
        single, arms_of_it = parsed(words[at + 1 :])
        singles.append((*single.precisions, *single.batch_size))
        assert report.parent == tmp_path / "an out"
        assert report.name.startswith(f"profile_{single.precisions[0]}_cpu")
        assert single == replace(typed, precisions=single.precisions, batch_size=single.batch_size)
        assert arms_of_it == replace(arms, precisions=single.precisions)
    assert singles == [("bf16", 1), ("bf16", 2), ("fp32", 1), ("fp32", 2)]
    assert len(set(reports)) == 4, "none overwrites another"


def test_the_report_of_one_shape_is_named_by_precision_and_gpu(command: Command, tmp_path: Path) -> None:
    ended = command("--precisions", "bf16", "--engine", "trtllm", gpus=(H100,))
    assert f"--output={tmp_path / 'an out' / 'profile_bf16_sm90'}" in shlex.split(ended.out)


def test_what_is_skipped_is_a_line_and_no_command(command: Command) -> None:
    ended = command("--precisions", "fp8,nvfp4")
    assert ended.code == 0
    lines = [line.split(":")[0] for line in ended.err.splitlines() if line.startswith("Skipping")]
    assert (lines, ended.out) == (["Skipping fp8", "Skipping nvfp4"], "")


@dataclass
class Inside:
    """What happens inside Nsight Systems: calls in order, and the settings of the engine that was loaded."""

    events: list[str] = field(default_factory=list)
    loaded: list[EngineSettings] = field(default_factory=list)
    gpu: bool = True
    breaks_at: int | None = None
    facts: EngineFacts = FACTS

    def generate(self, prompts: Sequence[Sequence[int]], request: GenerationRequest) -> list[Completion]:
        assert request.ignore_eos
        if self.events.count("generate") == self.breaks_at:
            raise EngineError("it broke")
        self.events.append("generate")
        return [Completion((7,) * request.max_new_tokens, "length") for _ in prompts]

    def close(self) -> None:
        self.events.append("close")

    def load(self, _: str, settings: EngineSettings, _tokenizer: Any) -> Inside:
        self.loaded.append(settings)
        return self

    @contextmanager
    def range(self, name: str) -> Iterator[None]:
        self.events.append(name)
        yield
        self.events.append("end of range")


@pytest.fixture
def inside(command: Command, monkeypatch: pytest.MonkeyPatch) -> Inside:
    made = Inside()
    monkeypatch.setenv("NSYS_PROFILING_SESSION_ID", "7")
    monkeypatch.setattr(registry, "load", made.load)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: made.gpu)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: made.events.append("synchronize"))
    monkeypatch.setattr(torch.cuda.profiler, "start", lambda: made.events.append("start"))
    monkeypatch.setattr(torch.cuda.profiler, "stop", lambda: made.events.append("stop"))
    monkeypatch.setattr(torch.cuda.nvtx, "range", made.range)
    return made


GPU = ["--engine", "trtllm", "--precisions", "bf16"]


def test_inside_one_iteration_is_recorded_after_the_warm_ups(command: Command, inside: Inside) -> None:
    ended = command(*GPU, "--batch_size", "2", "--warmup_iterations", "6", gpus=(H100,))
    assert ended.code == 0, ended.err
    assert inside.events == [
        *["generate"] * 6,
        *("synchronize", "start", "moe_eval bf16 b2_i16_o4", "generate", "synchronize", "end of range", "stop"),
        "close",
    ]
    assert ended.out == "Recorded one iteration of b2_i16_o4 on bf16 after 6 of warm-up.\n"


def test_an_engine_that_breaks_down_closes_the_capture_range_and_is_closed(command: Command, inside: Inside) -> None:
    inside.breaks_at = 5
    ended = command(*GPU, gpus=(H100,))
    assert ended.code == 1
    assert ended.err.splitlines()[-1] == "moe-eval: it broke"
    assert inside.events[-2:] == ["stop", "close"]


def test_an_engine_on_a_gpu_runs_in_the_process_that_opens_the_range(command: Command, inside: Inside) -> None:
    assert command(*GPU, "--model_args", "worker=spawned,max_num_tokens=512", gpus=(H100,)).code == 0
    (settings,) = inside.loaded
    assert settings.options == {"worker": "in_process", "max_num_tokens": 512}
    assert settings.batch_size == 1
    assert (settings.max_length or 0) >= 20


def test_transformers_is_in_this_process_anyway(command: Command, inside: Inside) -> None:
    assert command("--precisions", "bf16", gpus=(H100,)).code == 0
    assert inside.loaded[0].options == {}


@pytest.mark.parametrize("engine", [name for name, kind in registry.ENGINES.items() if kind.layer_ranges])
def test_layers_get_their_ranges_on_request(command: Command, inside: Inside, engine: str) -> None:
    assert command("--engine", engine, "--precisions", "bf16", "--layerwise_nvtx", gpus=(H100,)).code == 0
    options = inside.loaded[0].options
    assert options == {"worker": "in_process", **(registry.named(engine).layer_ranges or {})}
    # where a step is replayed as a graph no Python runs that could open a range
    assert options.get("enforce_eager") is True or options.get("cuda_graph_batch_sizes") == "none"


@pytest.mark.parametrize(
    ("arguments", "gpu", "sentence"),
    [
        (["--precisions", "bf16,fp16"], True, "one of --precisions or one --arm, and one --batch_size"),
        ([*GPU, "--batch_size", "1,2"], True, "one of --precisions or one --arm, and one --batch_size"),
        ([*GPU, "--model_args", "tensor_parallel_size=2"], True, "on several GPUs it is in others"),
        (GPU, False, "records kernels of a GPU and there is none here"),
        (["--precisions", "bf16", "--layerwise_nvtx"], True, "Transformers puts no ranges around its layers"),
        ([*GPU, "--warmup_iterations", "0"], True, "--warmup_iterations 0 is out of range"),
    ],
)
def test_what_cannot_be_recorded_is_refused_before_anything_is_loaded(
    command: Command, inside: Inside, arguments: list[str], gpu: bool, sentence: str
) -> None:
    inside.gpu = gpu
    ended = command(*arguments, gpus=(H100,) if gpu else ())
    assert ended.code == 2
    assert sentence in ended.err.splitlines()[-1]
    assert (ended.out, inside.loaded, inside.events) == ("", [], [])


def test_a_shape_that_the_loaded_engine_cannot_run_is_refused(command: Command, inside: Inside) -> None:
    inside.facts = replace(FACTS, max_length=19)
    ended = command(*GPU, gpus=(H100,))
    assert ended.code == 2
    assert "do not fit into the window of 19 tokens" in ended.err.splitlines()[-1]
    assert inside.events == ["close"]


@pytest.mark.parametrize("mode", ["perf", "nsys"])
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--num_iterations", "0"], "--num_iterations 0 is out of range"),
        (["--num_iterations", "-3"], "--num_iterations -3 is out of range"),
        (["--loads", "0"], "--loads 0 is out of range"),
        (["--warmup_iterations", "0"], "--warmup_iterations 0 is out of range. Give 1 or more."),
        (["--batch_size", "1,x"], "--batch_size 1,x cannot be read. Give a whole number or a list of them."),
        (["--batch_size", ""], "--batch_size cannot be read. Give a whole number or a list of them."),
        (["--batch_size", "2,1,2"], "Batch size 2 is given twice"),
        (["--batch_size", "0"], "batch size is 0"),
        (["--input_len", "0"], "input length in tokens is 0"),
        (["--output_len", "-1"], "output length in tokens is -1"),
        (["--input_len", "1021", "--output_len", "4"], "make 1025 tokens and "),
        (["--input_len", "512", "--batch_size", "999"], "the largest batch needs 999"),
        (["--dataset", "c4"], "no data set 'c4'"),
        (["--dataset", "random", "--seed", "-1"], "--seed -1 is out of range"),
        (["--precisions", "int4"], "no precision 'int4'"),
        (["--precisions", "bf16,bf16"], "Give each name once."),
        (["--model_args", "nonsense=1"], "knows no argument 'nonsense'"),
        (["--model_args", "tokenizer=/no/where"], "no usable tokenizer in /no/where"),
        (["--engine", "trtllm", "--model_args", "tensor_parallel_size=two"], "tensor_parallel_size=two is not a whole"),
        (["--engine", "trtllm", "--model_args", "tensor_parallel_size=0"], "tensor_parallel_size=0 is not a whole"),
        (["--model_path", "/no/where", "--engine", "transformers"], "There is no folder /no/where"),
        (["--engine", "foo"], "no engine 'foo'"),
        (["--disable_fusion"], "--disable_fusion is a setting of TensorRT-LLM"),
        (["--output_dir", __file__], "cannot be written to"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_any_arm(
    command: Command, monkeypatch: pytest.MonkeyPatch, arguments: list[str], sentence: str, mode: str
) -> None:
    monkeypatch.setattr(ArmProcess, "__init__", lambda *_: pytest.fail("an arm was started"))
    ended = command("--precisions=bf16", *arguments, "--mode", mode)
    assert ended.code == 2
    assert sentence in [line for line in ended.err.splitlines() if line.startswith("moe-eval: ")][-1]
    assert ended.err.splitlines()[-1].startswith("moe-eval: ")
    assert ended.out == ""
    assert not ended.folder.exists()


@pytest.mark.parametrize(
    ("session", "arguments", "sentence"),
    [
        ("7", [], "timed under Nsight Systems"),
        ("", ["--layerwise_nvtx"], "--layerwise_nvtx is for --mode nsys. Give both, or leave --layerwise_nvtx out."),
    ],
)
def test_what_is_for_a_trace_alone_is_refused_where_time_is_measured(
    command: Command, monkeypatch: pytest.MonkeyPatch, session: str, arguments: list[str], sentence: str
) -> None:
    if session:
        monkeypatch.setenv("NSYS_PROFILING_SESSION_ID", session)
    ended = command("--precisions", "bf16", *arguments, "--mode", "perf")
    assert ended.code == 2
    assert sentence in ended.err.splitlines()[-1]
    assert not ended.folder.exists()


def test_arms_by_name_have_a_command_each_that_does_just_that_one(command: Command) -> None:
    arms = [
        "--arm",
        "a:engine=transformers",
        "--arm=b:engine=transformers,dtype=float32,env.CUDA_DEVICE_MAX_CONNECTIONS=2",
    ]
    ended = command("--model_path", str(SHIPPED), *arms)
    assert (ended.code, ended.err) == (0, "")
    named = []
    for line in ended.out.splitlines():
        words = shlex.split(line)
        options, request = parsed(words[words.index("moe-eval") :][1:])
        assert options.mode == "nsys"
        named.append([(arm.name, arm.settings, dict(arm.environment)) for arm in request.arms])
        assert f"profile_{request.arms[0].name}_" in line
    assert named == [
        [("a", {}, {})],
        [("b", {"dtype": "float32"}, {"CUDA_DEVICE_MAX_CONNECTIONS": "2"})],
    ]
