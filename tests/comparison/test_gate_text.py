"""How a gate is read, and what is none."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_eval.comparison import gate_text
from moe_eval.comparison.gate import GateResult
from moe_eval.comparison.gate_text import Condition
from moe_eval.errors import UsageError

HOLDS, FAILS, UNDECIDED = GateResult
FIGURES = ("speed", "ttft", "tpot", "energy", "ln_ppl", "kld", "top1")


def test_a_gate_is_read_and_its_worst_result_counts() -> None:
    worst = [GateResult.worst(results) for results in ([], [HOLDS, UNDECIDED], [UNDECIDED, FAILS, HOLDS])]
    assert worst == [HOLDS, UNDECIDED, FAILS]
    assert gate_text.parse("speed>=1.2, ln_ppl <= 1e-2,nvfp4:energy[b8]>=2,verdict==pays, fp8:verdict == pays") == (
        Condition("speed>=1.2", "speed", None, None, ">=", 1.2),
        Condition("ln_ppl<=1e-2", "ln_ppl", None, None, "<=", 0.01),
        Condition("nvfp4:energy[b8]>=2", "energy", "nvfp4", 8, ">=", 2.0),
        Condition("verdict==pays", "verdict"),
        Condition("fp8:verdict==pays", "verdict", "fp8"),
    )


@given(st.sampled_from(FIGURES), st.sampled_from([">=", "<="]), st.floats(allow_nan=False, allow_infinity=False))
def test_every_bound_is_read_as_it_is_written(name: str, sign: str, bound: float) -> None:
    bound = abs(math.sin(bound)) if name == "top1" else bound
    (record,) = gate_text.parse(f"{name}{sign}{bound!r}")
    assert (record.name, record.sign, record.bound, record.batch_size) == (name, sign, bound, None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "speed",
        "speed>1.2",
        "speed>=",
        "speed>=x",
        "speed>=nan",
        "speed>=inf",
        "speed==1.2",
        "fast>=1",
        "speed>=1,",
        "kld[b8]<=1",
        "speed[8]>=1",
        "speed[b]>=1",
        "verdict>=1",
        "speed>=1;ln_ppl<=1",
        "speed>=1>=2",
        "kld<=1_0",
        "kl d<=1",
        "kld<=1 0",
        "kld< =1",
        "kld<=\uff11",
        "speed[b\u0661]>=1",
        "kld<=1e999",
        "kld<=0x1",
        "top1>=50",
        "top1<=-0.1",
        "speed [b1]>=1",
        ":speed>=1",
        "fp8:",
        "fp8: speed>=1",
        "fp8:fp8:speed>=1",
    ],
)
def test_what_is_no_gate_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(
        UsageError, match=r"^--gate has .*a list such as speed>=1.2,ln_ppl<=0.01.*verdict==pays\..* fp8:speed>=1.2\.$"
    ):
        gate_text.parse(text)


def test_a_verdict_that_does_not_exist_gets_the_nearest_one() -> None:
    with pytest.raises(UsageError, match=r"^--gate has 'verdict==wins'\. Did you mean verdict==pays\?$"):
        gate_text.parse("verdict==wins")
