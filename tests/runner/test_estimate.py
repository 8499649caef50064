"""How long a plan says that it takes, against runs of Qwen3-30B-A3B's shape through vLLM 0.22 that were timed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moe_eval.data.workload import Shape
from moe_eval.machine.hardware import Gpu
from moe_eval.machine.nsys import NsysSettings
from moe_eval.records import disk
from moe_eval.records.labels import ArmLabels
from moe_eval.runner import estimate, fit, plan_text
from moe_eval.runner import plan as planning
from moe_eval.runner.request import ArmsRequest, NamedArm, RunRequest
from moe_eval.runner.tasks import LoadResult, Task
from tests.doubles import plays
from tests.doubles import recorded_arms as made

H200 = tuple(Gpu("NVIDIA H200", "9.0", 140 << 30, f"GPU-{at}") for at in range(2))
H100 = (Gpu("NVIDIA H100 80GB HBM3", "9.0", 79 << 30, "GPU-0"),)
CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "moe_intermediate_size": 768,
    "intermediate_size": 6144,
    "num_hidden_layers": 48,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
PARALLEL: dict[str, dict[str, object]] = {
    "tp1": {},
    "tp2": {"tensor_parallel_size": 2},
    "ep2": {"tensor_parallel_size": 2, "enable_expert_parallel": True},
}
# Two H200s, one load of every arm, seconds: the timed tasks of batch 1 (with the load), 8, 32 and 64, all traces, and
# the load that counts experts where it ended. Last what its fresh interpreters took to import vLLM, which forks do not.
H200_RUN = {
    "bf16_tp1": ((132.7, 9.7, 9.3, 12.9), 14.5, 75.3, 18 + 17),
    "fp8_tp1": ((114.6, 5.6, 7.0, 9.9), 14.2, 77.5, 18 + 25),
    "bf16_tp2": ((128.6, 8.2, 6.8, 9.5), 18.5, 103.5, 34 + 37),
    "fp8_tp2": ((147.0, 5.3, 6.3, 8.2), 21.3, None, 36),
    "fp8_ep2": ((172.9, 7.4, 7.5, 8.4), 22.3, None, 43),
}
# One H100, four loads of BF16 and FP8, three iterations of 128 new tokens each: seconds of the timed tasks of every
# load, and of the task that counts experts.
H100_VERDICT = {
    "bf16_tp1": (
        (145.4, 19.6, 21.5, 32.7),
        (31.4, 23.7, 21.5, 31.5),
        (33.0, 23.6, 21.5, 31.5),
        (30.5, 23.6, 21.5, 28.1),
    ),
    "fp8_tp1": (
        (104.4, 15.9, 16.9, 22.8),
        (41.8, 18.8, 16.9, 22.1),
        (35.1, 17.3, 16.9, 22.0),
        (34.6, 16.3, 16.9, 26.6),
    ),
}
H100_ROUTING = {"bf16_tp1": 22.4, "fp8_tp1": 23.1}
H100_MINUTES = 25  # four loads of BF16 and FP8 and one each for experts and for Nsight Systems (docs/results/h100.md)


@pytest.fixture
def request_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A request of these arms, named PRECISION_PARALLEL, at batch 1, 8, 32 and 64."""
    (tmp_path / "shape").mkdir()
    (tmp_path / "shape" / "config.json").write_text(json.dumps(CONFIG))
    monkeypatch.setattr(fit, "free", lambda gpus: [gpu.memory_bytes for gpu in gpus])

    def made_of(*names: str, output_len: int, **changes: Any) -> RunRequest:
        arms = []
        for name in names:
            precision, _, sizes = name.partition("_")
            options = {"weights": "random", "moe_backend": "triton", **PARALLEL[sizes]}
            arms.append(NamedArm(name, "vllm", str(tmp_path / "shape"), precision, options))
        shapes = tuple(Shape(batch, 512, output_len) for batch in (1, 8, 32, 64))
        plain = plays.request(tmp_path / "runs" / "now", evaluators=("latency", "kernels"), resume=False)
        return replace(plain, arms=ArmsRequest("vllm", (), {}, arms=arms), shapes=shapes, **changes)

    return made_of


def test_the_minutes_of_a_run_on_two_gpus_are_within_a_quarter_of_what_it_took(request_of: Any) -> None:
    request = request_of(*H200_RUN, output_len=64, iterations=4, warm_ups=3)
    plan = planning.make(request, H200)
    expected = estimate.of_tasks(plan, request, H200)
    assert list(expected) == list(plan.tasks)
    for arm, (timed, traces, routing, imports) in H200_RUN.items():
        took = sum(timed) + traces + (routing or 0) - imports
        planned = sum(
            seconds for task, seconds in expected.items() if task.arm == arm and (task.kind != "routing" or routing)
        )
        assert planned == pytest.approx(took, rel=0.35), arm
    ended = [task for task in plan.tasks if task.kind != "routing" or H200_RUN[task.arm][2]]
    took = sum(sum(timed) + traces + (routing or 0) - imports for timed, traces, routing, imports in H200_RUN.values())
    assert sum(map(expected.__getitem__, ended)) == pytest.approx(took, rel=0.25)


def test_the_minutes_of_a_verdict_on_one_gpu_are_within_a_quarter_of_what_it_took(request_of: Any) -> None:
    request = request_of("bf16_tp1", "fp8_tp1", output_len=128, iterations=12, loads=4, nsys=NsysSettings())
    text = plan_text.describe(planning.make(request, H100), request, H100)
    minutes = int(text.partition("about ")[2].rpartition(" minutes for 12 loads (")[0].rpartition("about ")[2])
    assert minutes == pytest.approx(H100_MINUTES, rel=0.25)
    assert "if loading takes 25 s, 90 s where it compiles and weights are read at" in text


def test_the_minutes_of_a_verdict_of_times_alone_are_within_a_quarter_of_what_it_took(request_of: Any) -> None:
    timed = {"evaluators": ("latency",), "output_len": 128, "iterations": 12, "loads": 4}
    request = request_of(*H100_VERDICT, **timed)
    plan = planning.make(request, H100)
    expected = estimate.of_tasks(plan, request, H100)
    assert list(expected) == list(plan.tasks)
    took = sum(H100_ROUTING.values()) + sum(sum(map(sum, loads)) for loads in H100_VERDICT.values())
    assert sum(expected.values()) == pytest.approx(took, rel=0.25)


def test_loads_take_as_long_as_in_earlier_runs_beside_the_folder(request_of: Any) -> None:
    request = request_of("bf16_tp1", output_len=64)
    facts = replace(made.TIMED_ON, name="vllm", device_name="2 x NVIDIA H200")

    def leave(run: str, load: str, seconds: float | None, **changes: Any) -> None:
        folder = request.folder.parent / run / "perf_arms" / "a"
        folder.mkdir(parents=True, exist_ok=True)
        result = LoadResult(ArmLabels(replace(facts, **changes)), None, None, 1, None, seconds)
        disk.write_record(folder / f"load_{load}.json", result)

    assert not estimate.load_seconds("vllm", request.folder, H200).are_measured
    leave("first", "0", 90.0)
    leave("first", "1", 41.0)
    leave("first", "routing", 43.0)
    leave("second", "0", 94.0)
    leave("second", "1", 500.0, name="trtllm")
    leave("third", "1", 500.0, device_name="NVIDIA H100")
    leave("third", "0", None)
    assert estimate.load_seconds("vllm", request.folder, H200) == estimate.LoadSeconds(92.0, 42.0, True)
    text = plan_text.describe(planning.make(request, H200), request, H200)
    assert "if loading takes 42 s, 92 s where it compiles (as earlier on this machine) and weights" in text


def test_loads_on_different_gpus_take_the_time_of_the_longest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request_of: Any
) -> None:
    """Two arms, of which each fills a GPU, against the same two on one GPU with room for both."""
    request = request_of("bf16_tp1", "fp8_tp1", output_len=64, loads=3)

    def first_turn(free: list[int]) -> float:
        monkeypatch.setattr(fit, "free", lambda _: free)
        plan = planning.make(request, H200)
        assert plan.schedule.mode == "turns"
        return estimate.of_tasks(plan, request, H200)[Task("latency", "bf16_tp1", 0, request.shapes[0])]

    apart, shared = first_turn([75 << 30, 75 << 30]), first_turn([130 << 30, 130 << 30])
    assert shared - apart == pytest.approx(90)
