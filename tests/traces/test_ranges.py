"""Which phase an engine's annotation names, against the words of every engine."""

from __future__ import annotations

import pytest

from moe_eval.traces import ranges

PHASES = {
    # TensorRT-LLM: with a number, without one, with tokens
    "[Executor] _forward_step 7: 1 ctx reqs, 0 gen reqs": "prefill",
    "[Executor] _forward_step 12: 0 ctx reqs, 0 ctx tokens, 32 gen reqs": "decode",
    "[Executor] _forward_step 3: 2 ctx reqs, 1024 ctx tokens, 30 gen reqs": "mixed",
    "[Executor] _forward_step: 2 ctx reqs, 3 gen reqs": "mixed",
    "_forward_step: 0 ctx reqs, 8 gen reqs": "decode",
    "[Executor] _forward_step 7: 0 ctx reqs, 0 gen reqs": None,
    # vLLM 0.10 to 0.13
    "execute_new_8_cached_0": "prefill",
    "execute_new_0_cached_8": "decode",
    "execute_new_10_cached_2": "mixed",
    "execute_new_0_cached_0": None,
    # vLLM since
    "execute_context_1(512)_generation_0(0)": "prefill",
    "execute_context_0(0)_generation_64(128)": "decode",
    "execute_context_2(6144)_generation_3(3)": "mixed",
    "execute_context_0(0)_generation_0(0)": None,
    # with sums of lengths, also of SGLang
    "execute_14721_context_2(sq14721sk14721sqsq108sqsk108)_generation_0(sq0sk0sqsq0sqsk0)": "prefill",
    "execute_64_context_0(sq0sk0sqsq0sqsk0)_generation_64(sq64sk131072sqsq64sqsk131072)": "decode",
    "execute_6147_context_2(sq6144sk7144sqsq2sqsk2)_generation_3(sq3sk6144sqsq3sqsk6144)": "mixed",
    # vLLM's scopes name no phase
    "gpu_model_runner: forward": "step",
    "Forward": "step",
    "gpu_model_runner: preprocess": None,
    "gpu_model_runner: sample": None,
    # SGLang
    "step[EXTEND bs=2 toks=14721 c_sq=14721 c_sqsq=108]": "prefill",
    "step[SPLIT_PREFILL bs=2]": "prefill",
    "step[DECODE bs=64]": "decode",
    "step[TARGET_VERIFY bs=4]": "decode",
    "step[MIXED bs=2 c=1 g=1 c_sq=5]": "mixed",
    "step[DRAFT_EXTEND_V2 bs=4]": None,
    "step[DRAFT_LOOP raw_bs=3 bs=4 topk=1]": None,
    "step[IDLE bs=0]": None,
    # ATOM
    "prefill[bs=6 tok=17408 ctx=[4096, 4096, 4096]...+3]": "prefill",
    "decode[bs=117/128 tok=117 d=117]": "decode",
    "decode[bs=128 tok=384 p=2 d=126 sqsq=1]": "mixed",
    "decode[bs=128 tok=384 p=0 d=128]": "decode",
    # of no engine
    "model.layers.3.mlp.experts": None,
    "ProfilerStep#3": None,
    "forward": None,
    "execute_new_plan": None,
    "prefill": None,
}


@pytest.mark.parametrize("text", PHASES)
def test_an_annotation_names_its_phase(text: str) -> None:
    assert ranges.step(text) == PHASES[text]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("[Executor] _forward_step 3: 2 ctx reqs, 1024 ctx tokens, 30 gen reqs", 32),
        ("execute_new_10_cached_2", 12),
        ("execute_context_2(6144)_generation_3(3)", 5),
        ("execute_64_context_0(sq0sk0sqsq0sqsk0)_generation_64(sq64sk131072sqsq64sqsk131072)", 64),
        ("step[EXTEND bs=2 toks=14721]", 2),
        ("decode[bs=117/128 tok=117 d=117]", 117),
        ("gpu_model_runner: forward", None),
        ("step[IDLE bs=0]", None),
        ("bs=7", None),
    ],
)
def test_an_annotation_names_the_requests_of_its_step(text: str, count: int | None) -> None:
    assert ranges.requests(text) == count
