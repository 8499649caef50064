"""Comparisons of recorded arms: ratios by hand, swapped arms, quality from tokens, and what forbids them."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from moe_eval.comparison import gate, kernel_difference, pairs
from moe_eval.evaluators import kernels_record
from moe_eval.records import by_arm
from moe_eval.records.by_arm import ArmResults
from moe_eval.traces import breakdown
from moe_eval.traces.readers import files
from tests import recorded_arms as made
from tests.recorded_arms import INPUT, OUTPUT

TRACES = Path(__file__).parents[1] / "traces" / "data"
# e2e in ms of a Qwen3-30B-A3B with random weights on one H100 (vLLM 0.22.1): two loads of three iterations
H100 = {
    "bf16": {1: [[1321.0, 1320.8, 1321.4], [1300.7, 1299.6, 1297.0]],
             8: [[2847.1, 2846.2, 2846.6], [2843.8, 2843.9, 2843.9]]},
    "fp8": {1: [[1260.3, 1264.6, 1271.4], [1260.6, 1255.6, 1255.4]],
            8: [[2206.2, 2246.1, 2198.9], [2199.1, 2196.6, 2197.6]]},
}  # fmt: skip


def pair(*arms: ArmResults, across: tuple[str, ...] = ()) -> dict[str, Any]:
    """The one pair of two arms, as JSON gives it back."""
    found: dict[str, Any] = json.loads(json.dumps(pairs.make(arms, across), allow_nan=False))
    return dict(found["pairs"][0])


def h100(**how: Any) -> list[ArmResults]:
    more = {"mode": "reloaded", "experts": None, **how}
    return [made.arm("bf16", H100["bf16"], **more), made.arm("fp8", H100["fp8"], reference="bf16", **more)]


def test_ratios_and_intervals_of_a_real_pair_are_those_of_a_calculation_by_hand() -> None:
    found = pair(*h100())
    assert [row["name"] for row in found["shapes"]] == [f"b{n}_i{INPUT}_o{OUTPUT}" for n in (1, 8)]
    for row, medians in zip(
        found["shapes"], [((1321.0, 1264.6), (1299.6, 1255.6)), ((2846.6, 2206.2), (2843.9, 2197.6))], strict=True
    ):
        logs = np.log([a / b for a, b in medians])
        # two blocks: Student's t of one degree of freedom, the standard error from both
        reach = scipy_stats.t.ppf(0.975, 1) * logs.std(ddof=1) / math.sqrt(2)
        ratio = row["speed"]["e2e_ms"]
        assert ratio["value"] == pytest.approx(math.exp(logs.mean()), rel=1e-9)
        assert math.log(ratio["low"]) == pytest.approx(logs.mean() - reach, abs=0.03 * reach)
        assert math.log(ratio["high"]) == pytest.approx(logs.mean() + reach, abs=0.03 * reach)
        # the first token takes a quarter of a call in these records, so all times have one ratio
        assert row["speed"]["tpot_ms"]["value"] == pytest.approx(ratio["value"])
    one, eight = found["shapes"]
    assert (one["verdict"], eight["verdict"], found["verdict"]) == ("inconclusive", "pays", "pays")
    assert found["sentence"].startswith(
        "fp8 pays from batch 8 (1.29x, 1.27 to 1.32); at batch 1 it is open (1.04x, 0.98"
    )
    assert "cost" in found["sentence"]
    assert found["settled_by"] == "more blocks: give --blocks 4"
    assert "not checked (bf16: not measured)" in eight["reason"]
    assert eight["medians"]["e2e_ms"] == [pytest.approx(2845.05), pytest.approx(2198.999, rel=1e-3)]
    # the middle of six, of 0.01 J for every ms of a call, over the tokens made
    joules = [28.4505, 21.99]
    assert eight["medians"]["j_per_tok"] == [pytest.approx(each / (8 * OUTPUT)) for each in joules]
    assert eight["intervals"]["e2e_ms"] == [[2843.8, 2847.1], [2196.6, 2246.1]]
    assert eight["clocks"] == {"sm_mhz": [1980, 1980], "slow_samples": [0, 0]}
    assert found["schedule"] == {"mode": "reloaded", "blocks": 2, "per_block": 3, "one_run": True}


times = st.lists(st.lists(st.floats(10, 1000), min_size=2, max_size=2), min_size=1, max_size=4)


@settings(max_examples=40)
@given(st.data(), st.sampled_from(["interleaved", "reloaded", "sequential"]), st.booleans())
def test_swapped_arms_have_the_inverse_ratio_and_never_pay_both_ways(data: Any, mode: str, one_run: bool) -> None:
    blocks = data.draw(times)
    count = len(blocks)
    other = data.draw(st.lists(st.lists(st.floats(10, 1000), min_size=2, max_size=2), min_size=count, max_size=count))
    arms = [made.arm("bf16", {1: blocks, 4: other}, mode=mode),
            made.arm("fp8", {1: other, 4: blocks}, mode=mode, asked="one" if one_run else "other")]  # fmt: skip
    there, back = pair(*arms), pair(*arms[::-1])
    for row, reverse in zip(there["shapes"], back["shapes"], strict=True):
        for metric in ("e2e_ms", "ttft_ms", "tpot_ms"):
            a, b = row["speed"][metric], reverse["speed"][metric]
            assert a["value"] * b["value"] == pytest.approx(1)
            assert (a["low"] is None) == (b["low"] is None) == (len(blocks) == 1)
            if a["low"] is not None:
                assert a["low"] * b["high"] == pytest.approx(1)
        assert row["medians"]["e2e_ms"] == reverse["medians"]["e2e_ms"][::-1]
        assert not row["verdict"] == reverse["verdict"] == "pays"
    assert not there["verdict"] == back["verdict"] == "pays"
    codes = {gate.check({"pairs": [each]}, gate.parse("verdict==pays,speed>=1.02"))[0] for each in (there, back)}
    assert codes != {0}


def scored(tmp_path: Path, worse: dict[str, float], **how: Any) -> list[ArmResults]:
    """Arms with perplexity and its arrays on disk."""
    arrays = {name: made.scores(amount, **how) for name, amount in worse.items()}
    first = next(iter(arrays))
    for name, each in arrays.items():
        each.save(tmp_path / f"ppl_{name}_cpu.npz")
    return [
        ArmResults(name, name, ppl=made.ppl(name, each, (first, arrays[first])), folder=tmp_path)
        for name, each in arrays.items()
    ]


@pytest.mark.parametrize("batch", [1, 8, 32])
def test_the_difference_of_kernels_is_that_of_the_traces(batch: int) -> None:
    """Made from the records alone, and by diff from the whole traces of an H100."""
    whole, arms = [], []
    for name in ("bf16", "fp8"):
        trace = files.read(TRACES / f"{name}_b{batch}_i512_o9.json.gz")
        whole.append(breakdown.make(trace))
        record = {"shape": f"b{batch}_i512_o9", **kernels_record.record("x", trace, whole[-1], name)}
        timed = made.perf(name, {batch: [[100.0, 101.0], [100.0, 99.0]]})
        arms.append(ArmResults(name, name, timed, kernels={record["shape"]: json.loads(json.dumps(record))}))
    (row,) = pair(*arms)["shapes"]
    expected = kernel_difference.make(*whole)
    assert list(row["kernels"]) == [each.name for each in expected]
    for each in expected:
        found = row["kernels"][each.name]
        names = ("bf16", "fp8")
        assert found.pop("text") == kernel_difference.explain(each, names, 1.0)
        assert found == json.loads(json.dumps(kernels_record.difference(each, 1.0)))
    decode = whole[0].phase("decode")
    assert decode is not None
    assert decode.wall_ceiling is not None
    assert row["ceiling"]["decode"] == {
        "busy": decode.busy_ceiling.free, "wall": decode.wall_ceiling.free, "share": decode.busy_ceiling.share,
    }  # fmt: skip
    experts = [each.phase("decode").share("expert_gemm").ms for each in whole]  # type: ignore[union-attr]
    assert row["breakdown"]["decode"]["expert_gemm"] == experts
    assert row["predicted"]["busy"] == row["kernels"]["decode"]["predicted_ratio_busy"]
    assert row["measured"] == pytest.approx(1)


def test_kernels_belong_to_the_shape_of_their_size_and_stand_alone_where_there_is_none() -> None:
    ms = {1: [[100.0, 100.0]], 4: [[300.0, 300.0]]}
    traced = {shape: made.kernels("x", shape=shape) for shape in (f"b1_i{INPUT}_o9", f"b2_i{INPUT}_o9")}
    arms = [ArmResults(name, name, made.perf(name, ms), kernels=traced) for name in ("bf16", "fp8")]
    rows = pair(*arms)["shapes"]
    assert [(row["batch_size"], row["kernels"] is not None) for row in rows] == [(1, True), (4, False), (2, True)]
    assert rows[2]["speed"] == dict.fromkeys(("e2e_ms", "ttft_ms", "tpot_ms"))
    alone = pair(arms[0], ArmResults("fp8", "fp8", made.perf("fp8", ms)))["shapes"]
    assert (alone[0]["kernels"], alone[0]["breakdown"]) == (None, None)
    assert set(alone[0]["ceiling"]) == {"prefill", "decode"}


MS = {1: [[100.0, 101.0], [100.0, 99.0]]}
BASE = {"name": "fp8", "e2e_ms": MS, "reference": "bf16"}


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"gpu": "NVIDIA H200"}, r"speed on another GPU .NVIDIA H100 80GB HBM3 and NVIDIA H200"),
        ({"gpus": 2}, "NVIDIA H100 80GB HBM3 and 2 x NVIDIA H100"),
        ({"seed": 1}, "speed on other prompts or shapes"),
        ({"weights": "random"}, "speed with other weights .checkpoint and random"),
        ({"architecture": "Mixtral"}, "other architecture"),
        ({"version": "0.23"}, "another version of the engine .0.22.1 and 0.23"),
        ({"precision": "fp8-w8a16"}, "fp8 ran fp8-w8a16 where fp8 was planned"),
    ],
)
def test_arms_that_differ_in_more_than_precision_are_not_compared(how: dict[str, Any], says: str) -> None:
    arms = [made.arm("bf16", MS), made.arm(**{**BASE, **how})]
    found = pair(*arms)
    assert found["verdict"] == "not comparable"
    assert len(found["differs"]) == 1
    for text in (found["differs"][0], found["sentence"]):
        assert re.search(says, text)
    assert {row["verdict"] for row in found["shapes"]} == {"not comparable"}
    assert found["because"] == ""
    assert gate.check({"pairs": [found]}, gate.parse("speed<=9,verdict==pays"))[0] == gate.UNDECIDED
    across = pair(*arms, across=("gpus",))
    assert (across["verdict"] == "not comparable") == ("gpu" not in str(how))
    assert any(each["other"] in str(how) for each in found["labels"]) or "seed" in how or "gpus" in how


def test_other_windows_and_kernels_that_contradict_their_label_are_named(tmp_path: Path) -> None:
    arms = scored(tmp_path, {"bf16": 0.0, "fp8": 0.02})
    assert arms[1].ppl is not None
    for change, says in (
        ({"input_len": 256}, "another window (128 and 256)"),
        ({"dataset": "wikitext"}, "another data set (moe_sample and wikitext)"),
        ({}, "another tokenizer"),
    ):
        other = ArmResults("fp8", "fp8", ppl={**arms[1].ppl, "dataset_digest": "e" * 16, **change}, folder=tmp_path)
        found = pair(arms[0], other)
        assert (found["verdict"], found["quality"]) == ("not comparable", None)
        assert says in found["sentence"]
    wrong = made.kernels("fp8", label="fp8")  # its trace has no kernel that quantises
    assert "the label says fp8" in wrong["contradiction"]
    found = pair(made.arm("bf16", MS), ArmResults("fp8", "fp8", made.perf("fp8", MS), kernels={"": wrong}))
    assert found["differs"] == [f"fp8: {wrong['contradiction']}"]


def test_prompts_that_are_read_over_other_numbers_of_steps_void_speed_at_that_shape() -> None:
    times = {1: MS[1], 8: MS[1]}
    limits = {"bf16": 4 * made.INPUT, "fp8": 8 * made.INPUT}
    arms = [made.arm(name, times, max_step_tokens=limit) for name, limit in limits.items()]
    found = {row["batch_size"]: row for row in pair(*arms)["shapes"]}
    assert {size: row["fair"] for size, row in found.items()} == {1: True, 8: False}
    assert f"bf16 reads {8 * made.INPUT} prompt tokens over 2 steps and fp8 over 1" in found[8]["fair_reason"]


def test_unfair_routing_voids_speed_and_not_quality(tmp_path: Path) -> None:
    one, two = scored(tmp_path, {"bf16": 0.0, "fp8": 0.02})
    arms = [ArmResults("bf16", "bf16", made.perf("bf16", MS), one.ppl, folder=tmp_path),
            ArmResults("fp8", "fp8", made.perf("fp8", MS, experts=40.0), two.ppl, folder=tmp_path)]  # fmt: skip
    found = pair(*arms)
    assert (found["shapes"][0]["fair"], found["verdict"]) == (False, "not comparable")
    assert "bf16 reads 50.0 experts" in found["sentence"]
    codes = [gate.check({"pairs": [found]}, gate.parse(text))[0] for text in ("speed>=0.1", "ln_ppl<=0.1")]
    assert codes == [gate.UNDECIDED, gate.HOLDS]


def test_arms_are_described_and_broken_ones_are_named() -> None:
    traced = {f"b1_i{INPUT}_o9": made.kernels("fp8", fp8=True, label="fp8")}
    arms = [made.arm("bf16", MS), made.arm("bf16-again", MS, reference="bf16"),
            ArmResults("fp8", "fp8", made.perf("fp8", MS, status="failed", slow=1), kernels=traced)]  # fmt: skip
    found = pairs.make(arms)
    assert (found["schema"], found["reference"]) == (1, "bf16")
    fp8 = found["arms"][2]
    expected = {"name": "fp8", "engine": "vllm", "engine_version": "0.22.1", "gpu": made.GPU, "precision_seen": "fp8",
                "status": "failed", "error": "out of memory"}  # fmt: skip
    assert {key: fp8[key] for key in expected} == expected
    assert fp8["speed"][f"b1_i{INPUT}_o{OUTPUT}"]["e2e_ms"]["median"] == pytest.approx(100)
    assert set(fp8["kernels"][f"b1_i{INPUT}_o9"]) == {"prefill", "decode"}
    again, other = found["pairs"]
    assert (again["again"], other["again"]) == (True, False)
    assert "bf16 measured a second time" in again["sentence"]
    assert other["sentence"].endswith("; fp8 failed (out of memory)")
    assert other["shapes"][0]["clocks"]["slow_samples"] == [0, 2]
    assert "at under 75 %" in other["shapes"][0]["notes"]["fp8"][0]
    assert "bf16" not in other["shapes"][0]["notes"]
    assert {"label": "precision", "reference": "bf16", "other": "fp8"} in other["labels"]
    code, lines = gate.check(found, gate.parse("speed>=0.5"))
    assert lines[0].startswith("speed>=0.5 holds for fp8 against bf16")
    assert (code, lines[1]) == (gate.UNDECIDED, "fp8 failed (out of memory), so the gate cannot hold")


def test_slow_samples_that_nobody_could_see_are_not_none() -> None:
    blind = made.arm("fp8", MS)
    assert blind.perf is not None
    for block in blind.perf["shapes"][0]["gpu"]:
        block["slow_samples"] = [None] * len(block["slow_samples"])
    assert pair(made.arm("bf16", MS), blind)["shapes"][0]["clocks"]["slow_samples"] == [0, None]


def test_arms_of_two_runs_are_compared_with_drift_allowed_for() -> None:
    """A ratio of 1.01 whose blocks agree to the last digit."""
    faster = {1: [[ms / 1.01 for ms in block] for block in MS[1]]}
    together = pair(made.arm("bf16", MS), made.arm("fp8", faster))
    apart = pair(made.arm("bf16", MS), made.arm("fp8", faster, asked="another folder"))
    assert (together["verdict"], apart["verdict"]) == ("pays", "inconclusive")
    assert "measured in two runs" in apart["shapes"][0]["reason"]
    assert apart["settled_by"] == "one run of both arms, so that they take turns"


def test_a_folder_becomes_a_comparison(tmp_path: Path) -> None:
    made.write(tmp_path, h100())
    assert pairs.make(by_arm.read(tmp_path))["pairs"][0]["verdict"] == "pays"
