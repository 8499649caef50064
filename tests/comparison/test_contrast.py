"""Arms on other numbers of GPUs, engines and caches: what the verdict says they are, by what it decides, and costs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from moe_eval.comparison import pairs, verdict_wording
from moe_eval.comparison.comparable import ACROSS
from moe_eval.records.by_arm import ArmRecords
from moe_eval.records.labels import ArmSettings, Status
from moe_eval.records.latency import MemoryUse
from moe_eval.records.verdicts import Rules, Verdict
from tests.doubles import recorded_arms as made

LOADS = [[100.0, 100.2], [99.5, 99.7], [100.1, 100.0], [100.4, 100.2]]
MS = {8: LOADS}


def times(factor: float) -> dict[int, list[list[float]]]:
    return {8: [[factor * ms for ms in load] for load in reversed(LOADS)]}


def on(arm: ArmRecords, **facts: Any) -> ArmRecords:
    """The arm with other facts of its engine."""
    assert arm.latency is not None
    assert arm.latency.labels.engine is not None
    labels = replace(arm.latency.labels, engine=replace(arm.latency.labels.engine, **facts))
    return replace(arm, latency=replace(arm.latency, labels=labels))


def planned(arm: ArmRecords, gpus: int = 1, engine: str = "vllm", checkpoint: str = "x", **settings: Any) -> ArmRecords:
    """The arm as one that a run placed on so many GPUs."""
    assert arm.latency is not None
    asked = ArmSettings(engine, checkpoint, arm.precision, gpus=tuple(range(gpus)), **settings)
    return replace(arm, latency=replace(arm.latency, origin=replace(arm.latency.origin, arm=asked)))


def of_two(reference: dict[str, Any], other: dict[str, Any], factor: float = 1.0) -> list[ArmRecords]:
    """bf16 and fp8, which takes so many times as long, with facts of the engine and settings that were planned."""
    arms = []
    for precision, facts, ms in (("bf16", dict(reference), MS), ("fp8", dict(other), times(factor))):
        settings = {name: facts.pop(name) for name in ("options", "environment") if name in facts}
        arm = on(made.arm(f"arm_{precision}", ms, planned=precision), **facts)
        arms.append(planned(arm, facts.get("gpus", 1), facts.get("name", "vllm"), **settings))
    return arms


@pytest.mark.parametrize(
    ("reference", "other", "words"),
    [
        ({"gpus": 2}, {"gpus": 1}, "fp8 on one GPU against bf16 on two"),
        ({"gpus": 1}, {"gpus": 16}, "fp8 on 16 GPUs against bf16 on one"),
        ({}, {"kv_cache_dtype": "fp8_e4m3"}, "fp8 with the KV cache in fp8 against bf16"),
        ({"kv_cache_dtype": "float16"}, {"kv_cache_dtype": "bfloat16"}, ""),
        ({"name": "trtllm"}, {}, "fp8 on vLLM against bf16 on TensorRT-LLM"),
        ({}, {"options": {"moe_backend": "triton"}}, "fp8 with moe_backend=triton against bf16"),
        ({"options": {"seed": 1}}, {"options": {"seed": 1}}, ""),
        ({"environment": {"NCCL_ALGO": "Ring"}}, {}, "fp8 against bf16 with NCCL_ALGO=Ring"),
        (
            {"gpus": 2, "options": {"tensor_parallel_size": 2}},
            {"gpus": 2, "options": {"tensor_parallel_size": 2, "enable_expert_parallel": True}},
            "fp8 with expert parallelism against bf16",
        ),
        ({}, {}, ""),
        (
            {"kv_cache_dtype": "fp8_e4m3"},
            {"kv_cache_dtype": "fp8_e5m2"},
            "fp8 with the KV cache in fp8_e5m2 against bf16 with the KV cache in fp8_e4m3",
        ),
        (
            {"gpus": 4, "options": {"moe_expert_parallel_size": 2}},
            {"gpus": 4, "options": {"moe_expert_parallel_size": 4}},
            "fp8 with expert parallelism over 4 against bf16 with expert parallelism over 2",
        ),
        (
            {"gpus": 4, "options": {"tensor_parallel_size": 4}},
            {"gpus": 4, "options": {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}},
            "fp8 with tensor_parallel_size=2 and pipeline_parallel_size=2 against bf16 with tensor_parallel_size=4",
        ),
        (
            {"options": {"enforce_eager": True}},
            {"options": {"cuda_graph_batch_sizes": (1, 8)}},
            "fp8 with cuda_graph_batch_sizes=[1,8] against bf16 with enforce_eager=true",
        ),
        ({"options": {"moe_backend": "auto"}}, {}, ""),
        (
            {"device_name": "NVIDIA H100"},
            {"device_name": "NVIDIA B200"},
            "fp8 on NVIDIA B200 against bf16 on NVIDIA H100",
        ),
        (
            {"gpus": 2, "name": "trtllm", "options": {"max_num_tokens": 64}},
            {
                "kv_cache_dtype": "fp8_e4m3",
                "options": {"kv_cache_dtype": "fp8", "moe_backend": "triton"},
                "environment": {"VLLM_USE_DEEP_GEMM": "1"},
            },
            "fp8 on vLLM and one GPU with the KV cache in fp8, moe_backend=triton and VLLM_USE_DEEP_GEMM=1 "
            "against bf16 on TensorRT-LLM and two GPUs with max_num_tokens=64",
        ),
    ],
)
def test_what_differs_beside_precision_stands_in_the_sentence(
    reference: dict[str, Any], other: dict[str, Any], words: str
) -> None:
    (compared,) = pairs.compare(of_two(reference, other)).pairs
    assert compared.contrast == words
    assert compared.verdict is not Verdict.NOT_COMPARABLE
    assert compared.sentence.endswith(f" This is {words}." if words else compared.sentence)
    assert "This is" in compared.sentence or not words


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"checkpoint": "/models/B/"}, "bf16 of B against bf16 of x"),
        ({"fingerprint": "e" * 16}, "bf16 of x (eeeeeeee) against bf16 of x (ffffffff)"),
        ({"moe_backend_observed": "CUTLASS"}, "bf16 with experts on CUTLASS against bf16 with experts on TRITON"),
        ({"moe_backend_observed": None}, ""),
    ],
)
def test_what_differs_in_one_precision_stands_in_the_sentence(other: dict[str, Any], words: str) -> None:
    """Between precisions a checkpoint and the implementation of experts differ by themselves."""
    arms = [planned(on(made.arm(name, MS, planned="bf16"), **facts)) for name, facts in (("a", {}), ("b", other))]
    (compared,) = pairs.compare(arms).pairs
    assert compared.contrast == words


@pytest.mark.parametrize(
    ("factor", "verdict"), [(1.5, Verdict.PAYS), (2.5, Verdict.SLOWER), (2.0, Verdict.NO_DIFFERENCE)]
)
def test_one_gpu_against_two_is_decided_by_output_per_gpu(factor: float, verdict: Verdict) -> None:
    """One GPU that takes `factor` times as long as two makes 2 / factor times as many tokens on each."""
    comparison = pairs.compare(of_two({"gpus": 2}, {"gpus": 1}, factor))
    (compared,) = comparison.pairs
    (shape,) = compared.shapes
    assert compared.verdict is verdict
    assert shape.speed.output_tok_s_per_gpu is not None
    assert shape.speed.output_tok_s_per_gpu.value == pytest.approx(2 / factor)
    assert shape.speed.e2e_ms is not None
    assert shape.speed.e2e_ms.value == pytest.approx(1 / factor)
    assert "in output tokens per second and GPU (arm_fp8 has 1 and arm_bf16 has 2)" in compared.sentence
    assert "Worse is its end-to-end time: 0." in compared.sentence
    headline = {row.figure.value: row for row in compared.headlines}
    assert headline["output_tok_s_per_gpu"].ratio == pytest.approx(2 / factor)
    assert headline["output_tok_s_per_gpu"].verdict == verdict.value
    assert headline["speed_up"].ratio == pytest.approx(1 / factor)
    assert headline["speed_up"].verdict == "slower"


@pytest.mark.parametrize(
    ("rules", "decider"),
    [
        (Rules(), "output_tok_s_per_gpu"),
        (Rules(decide_on="output_tok_s_per_gpu"), "output_tok_s_per_gpu"),
        (Rules(per_gpu=False), "e2e_ms"),
        (Rules(decide_on="output_tok_s"), "e2e_ms"),
        (Rules(decide_on="tpot"), "tpot_ms"),
    ],
)
def test_a_time_that_was_named_decides_between_numbers_of_gpus_as_well(rules: Rules, decider: str) -> None:
    (compared,) = pairs.compare(of_two({"gpus": 2}, {"gpus": 1}, 1.5), rules=rules).pairs
    assert compared.shapes[0].speed.decided_by(rules) == decider
    assert compared.verdict is (Verdict.PAYS if decider == "output_tok_s_per_gpu" else Verdict.SLOWER)
    (alike,) = pairs.compare(of_two({}, {}, 0.5), rules=rules).pairs
    assert alike.shapes[0].speed.output_tok_s_per_gpu is None
    assert alike.verdict is Verdict.PAYS


def another_run(arm: ArmRecords) -> ArmRecords:
    assert arm.latency is not None
    return replace(arm, latency=replace(arm.latency, origin=replace(arm.latency.origin, run_id="f" * 32)))


@pytest.mark.parametrize(
    ("facts", "across"),
    [
        ({"gpus": 2}, "gpu_count"),
        ({"gpu": "NVIDIA H200"}, "gpus"),
        ({"gpu": "NVIDIA H200", "gpus": 2}, "gpus"),
        ({"name": "trtllm", "version": "1.2"}, "engines"),
        ({"version": "0.23"}, "versions|engines"),
        ({"weights": "random"}, "checkpoint"),
        ({"architecture": "Mixtral", "gpus": 2}, "gpu_count,checkpoint"),
    ],
)
def test_arms_of_two_runs_are_refused_with_the_option_that_compares_them(facts: dict[str, Any], across: str) -> None:
    changed = {name: value for name, value in facts.items() if name != "gpu"}
    arms = [made.arm("bf16", MS), another_run(on(made.arm("fp8", MS, gpu=facts.get("gpu", made.GPU)), **changed))]
    (compared,) = pairs.compare(arms).pairs
    assert compared.verdict is Verdict.NOT_COMPARABLE
    assert compared.settled_by is not None
    option = compared.settled_by.removeprefix("moe-eval compare --across ").removesuffix(" compares them nevertheless.")
    assert option in across.split("|")
    assert f"Next: moe-eval compare --across {option}" in verdict_wording.summary(pairs.compare(arms))
    (allowed,) = pairs.compare(arms, across=option.split(",")).pairs
    assert allowed.verdict is not Verdict.NOT_COMPARABLE
    for name in option.split(","):
        fewer = [other for other in ACROSS if other != name and (name, other) != ("gpu_count", "gpus")]
        if name not in ("versions", "engines"):
            assert pairs.compare(arms, across=fewer).pairs[0].verdict is Verdict.NOT_COMPARABLE


def test_other_prompts_have_no_option_that_compares_them() -> None:
    (compared,) = pairs.compare([made.arm("bf16", MS), made.arm("fp8", MS, seed=1, gpus=2)]).pairs
    assert (compared.verdict, compared.settled_by) == (Verdict.NOT_COMPARABLE, None)


def test_a_million_tokens_cost_what_all_gpus_of_the_arm_cost() -> None:
    arms = of_two({"gpus": 2}, {"gpus": 1}, 1.5)
    comparison = pairs.compare(arms, rules=Rules(price_per_gpu_hour=2.5))
    for arm, gpus, seconds in zip(comparison.arms, (2, 1), (0.1, 0.15), strict=True):
        (cost,) = arm.cost.values()
        tokens_per_hour = 3600 * 8 * made.OUTPUT / seconds
        assert cost.median == pytest.approx(gpus * 2.5 / tokens_per_hour * 1e6, rel=3e-3)
        assert cost.low is not None
        assert cost.high is not None
        assert cost.low < cost.median < cost.high
    line = verdict_wording.summary(comparison).splitlines()[-1]
    assert line.startswith(
        f"Cost of a million output tokens at b8_i{made.INPUT}_o{made.OUTPUT}, for 2.5 per GPU and hour:"
    )
    assert not any(arm.cost for arm in pairs.compare(arms).arms)
    assert "Cost" not in verdict_wording.summary(pairs.compare(arms))


def test_memory_is_what_the_loaded_arm_took_of_one_gpu() -> None:
    arm = made.arm("bf16", MS)
    assert arm.latency is not None
    uses = (MemoryUse(0, 0, 2, 30 << 30), MemoryUse(0, 0, 2, 31 << 30), MemoryUse(0, 0))
    measured = replace(arm, latency=replace(arm.latency, memory=uses))
    assert [row.taken_gib for row in pairs.compare([measured, made.arm("fp8", MS)]).arms] == [31.0, None]


def test_a_failure_that_all_arms_share_is_told_once() -> None:
    timed = [made.arm(name, MS, status=Status.FAILED) for name in ("bf16", "fp8", "nvfp4")]
    arms = [replace(arm, latency=replace(arm.latency, shapes=())) for arm in timed]
    assert verdict_wording.summary(pairs.compare(arms)) == "Open: all arms failed for one reason. Out of memory."
    assert "all arms failed" not in verdict_wording.summary(pairs.compare(timed)), "they were timed before"
    (compared,) = pairs.compare(arms[:2]).pairs
    assert compared.sentence.count("out of memory") == 1
    one = pairs.compare([made.arm("bf16", MS), *arms[1:]])
    assert len(verdict_wording.verdict_lines(one)) == 2


def test_an_arm_with_another_environment_is_no_repeat() -> None:
    arms = [planned(made.arm(name, MS, planned="bf16")) for name in ("a", "b")]
    assert pairs.compare(arms).pairs[0].is_repeat
    (compared,) = pairs.compare([arms[0], planned(arms[1], environment={"NCCL_ALGO": "Ring"})]).pairs
    assert not compared.is_repeat
    assert [(row.label, row.other) for row in compared.labels] == [("environment.NCCL_ALGO", "Ring")]


@pytest.mark.parametrize(
    ("options", "facts", "sentence"),
    [
        (
            {"kv_cache_dtype": "fp8"},
            {"kv_cache_dtype": "bfloat16"},
            "was to keep its KV cache in fp8 and kept it in bfl",
        ),
        ({"kv_cache_dtype": "fp8"}, {"kv_cache_dtype": "fp8_e4m3"}, None),
        ({"kv_cache_dtype": "auto"}, {"kv_cache_dtype": "fp8"}, None),
        ({"moe_backend": "deep_gemm"}, {"moe_backend_observed": "Fp8MoEMethod/DEEPGEMM"}, None),
        ({"moe_backend": "deep_gemm"}, {"moe_backend_observed": "Fp8MoEMethod/TRITON"}, "experts on deep_gemm and ran"),
        ({"moe_backend": "cutlass"}, {"moe_backend_observed": "Fp8MoEMethod/FLASHINFER_CUTLASS"}, "ran them on Fp8MoE"),
        ({"moe_backend": "cutlass"}, {"moe_backend_observed": "Fp8MoEMethod/VLLM_CUTLASS"}, None),
        ({"moe_backend": "triton"}, {"moe_backend_observed": "UnquantizedFusedMoEMethod"}, None),
        ({"moe_backend": "triton"}, {"moe_backend_observed": None}, None),
        ({"moe_backend": "auto"}, {"moe_backend_observed": "Fp8MoEMethod/TRITON"}, None),
    ],
)
def test_an_arm_that_did_not_follow_its_settings_is_not_compared(
    options: dict[str, Any], facts: dict[str, Any], sentence: str | None
) -> None:
    (compared,) = pairs.compare(of_two({}, {"options": options, **facts})).pairs
    assert (compared.verdict is Verdict.NOT_COMPARABLE) == (sentence is not None)
    assert sentence is None or sentence in compared.sentence


@pytest.mark.parametrize(("loaded", "seen", "holds"), [
    ("fp8_e4m3", "unquantised", False),
    ("fp8_e4m3", "fp8", True),
    ("fp8_e4m3", None, True),
    ("bfloat16", "fp8", False),
    ("auto", "fp8", True),
])  # fmt: skip
def test_a_cache_that_kernels_contradict_is_not_compared(loaded: str, seen: str | None, holds: bool) -> None:
    arms = of_two({}, {"kv_cache_dtype": loaded})
    trace = replace(made.kernels("arm_fp8", fp8=True), kv_cache_seen=seen)
    (compared,) = pairs.compare([arms[0], replace(arms[1], kernels={"b8_i512_o9": trace})]).pairs
    assert (compared.verdict is not Verdict.NOT_COMPARABLE) == holds
