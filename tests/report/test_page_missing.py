"""What a page leaves out, or says that it was not measured, where a comparison has less than everything."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from typing import Any

import pytest

from moe_eval.report import markdown
from tests.report import example
from tests.report.parsed import read


def without(path: str) -> Callable[[dict[str, Any]], None]:
    """Sets what the path names to None in every pair and shape."""

    def change(made: dict[str, Any]) -> None:
        for pair in made["pairs"]:
            for part in [pair, *pair["shapes"]]:
                if path in part:
                    part[path] = None

    return change


def _bare(made: dict[str, Any]) -> None:
    for pair in made["pairs"]:
        pair["quality"] = None
        for shape in pair["shapes"]:
            for key in set(shape) - {"name", "batch_size", "input_len", "output_len", "verdict", "reason"}:
                shape[key] = None


def test_nothing_measured_says_so() -> None:
    made = example.comparison()
    _bare(made)
    found = read(made, {})
    assert found.text.count("Not measured.") == 3
    assert not found.all("svg")


@pytest.mark.parametrize(
    ("key", "lost"),
    [("kernels", "From a step"), ("quality", "Perplexity against"), ("ceiling", "ceiling of busy"),
     ("speed", "Speed-up of"), ("breakdown", "Kernel time per step"), ("labels", "Labels that differ"),
     ("clocks", "SM clock"), ("medians", ""), ("intervals", ""), ("predicted", "predicted by"), ("fair", "")],
)  # fmt: skip
def test_a_missing_part_takes_its_charts_and_columns_with_it(key: str, lost: str) -> None:
    whole = "".join(read(example.comparison()).text)
    made = example.comparison()
    without(key)(made)
    shown = "".join(read(made).text)
    if lost:
        assert lost in whole
        assert lost not in shown


def test_ratios_without_an_interval_and_numbers_that_are_none() -> None:
    made = example.comparison()
    for shape in made["pairs"][0]["shapes"]:
        shape["speed"]["e2e_ms"] |= {"low": None, "high": None}
        shape["speed"]["tpot_ms"] |= {"low": math.nan, "high": math.inf}
        shape["speed"]["tpot_ms"] |= {"low": -0.1, "high": 3.0} if shape["batch_size"] == 8 else {}
        shape["speed"]["ttft_ms"] = {"value": math.nan, "low": 1.0, "high": 2.0, "blocks": 1, "source": None}
        shape["medians"]["e2e_ms"] = [None, math.nan]
        shape["intervals"]["e2e_ms"] = None
    made["pairs"][0]["quality"] |= {"ln_ppl_ratio": None, "no_interval": "one document is too few"}
    rows = read(made).tables["Speed: fp8 against bf16 (medians)"]
    assert [row[rows[0].index("speed-up: 95 % interval")] for row in rows[1:3]] == ["none", "1.000x to 2.000x"]
    assert "one document is too few" in "".join(read(made).text)


def test_an_unfair_shape_has_no_speed() -> None:
    made = example.comparison()
    made["pairs"][0]["shapes"][2] |= {"fair": False, "fair_reason": "61.2 experts against 38.0"}
    found = read(made)
    assert "Left out, as the routing was not fair: fp8 at batch 32." in "".join(found.text)
    assert not [each for each in found.all("g") if each.get("data-batch") == "32"]
    rows = found.tables["Speed: fp8 against bf16 (medians)"]
    assert next(row[rows[0].index("speed-up")] for row in rows if row[0] == "b32_i512_o256") == "void: not fair"
    assert "61.2 experts against 38.0" in "".join(found.text)


def test_a_pair_that_is_not_comparable_shows_no_figures() -> None:
    made = example.comparison()
    made["pairs"] = [copy.deepcopy(made["pairs"][0]) | {"verdict": "not comparable", "differs": ["workload digest"]}]
    found = read(made)
    assert not found.all("svg")
    assert not [name for name in found.tables if name.startswith(("Speed", "Time per step", "Quality"))]
    assert "workload digest" in "".join(found.text)


def test_one_arm_alone_all_failed_and_nothing_at_all() -> None:
    made = example.comparison()
    alone = {**made, "arms": made["arms"][:1], "pairs": []}
    assert "One arm alone has no other" in "".join(read(alone).text)
    failed = [{**each, "status": "failed", "error": "no <GPU>", "perplexity": None} for each in made["arms"]]
    found = read({**made, "arms": failed, "pairs": []})
    assert "No arm has a result." in "".join(found.text)
    assert [row[3] for row in found.tables["Arms that were skipped or failed"][1:]] == ["no <GPU>"] * 5
    assert not read({"schema": 1, "reference": None, "arms": [], "pairs": []}, {}).all("table")


def test_arms_that_nothing_is_compared_with_show_their_own_figures() -> None:
    made = example.comparison()
    shape = made["pairs"][0]["shapes"][0]
    times = {"e2e_ms": {"median": 1310.71, "low": 1297.0, "high": 1321.4}, "ttft_ms": {"median": 64.4, "low": None}}
    made["arms"][0] |= {"speed": {shape["name"]: times}, "kernels": {"b1_i512_o9": {"decode": {"expert_gemm": 2.125}}}}
    assert "Speed of single arms (medians)" not in read(made).tables
    assert not [name for name in read(made).tables if "b1_i512_o9" in name]
    one_sided = {**shape, "speed": None, "breakdown": None, "kernels": None, "medians": {"e2e_ms": [1310.71, None]}}
    emulated = {**made["pairs"][1], "shapes": [one_sided]}
    for pairs in ([], made["pairs"][1:], [emulated]):
        found = read({**made, "pairs": pairs})
        assert found.tables["Speed of single arms (medians)"][1:] == [
            ["bf16", "b1_i512_o256", "end-to-end time, ms", "1,310.7", "1,297.0 to 1,321.4"],
            ["bf16", "b1_i512_o256", "time to first token, ms", "64.400", "not measured"],
        ]
        assert not [name for name in found.tables if name.startswith("Speed: ")], "a column alone compares nothing"
        name = "Time per step: bf16, b1_i512_o9, decode (trace, medians)"
        assert found.tables[name][1:] == [["expert GEMM", "2.125"]]
        (bar,) = [each for each in found.all("g") if each.get("data-category") == "expert_gemm"]
        assert bar["data-arm"] == "bf16"


def test_several_arms_and_lengths_share_charts_by_lengths() -> None:
    made = example.comparison()
    second = copy.deepcopy(made["pairs"][0]) | {"other": "nvfp4"}
    for shape in made["pairs"][0]["shapes"][:1]:
        shape |= {"input_len": 2048, "name": "b1_i2048_o256"}
    made["pairs"][1] = second
    found = read(made)
    points = [each for each in found.all("g") if "data-batch" in each]
    assert len(points) == 3 * (3 + 3)
    titles = [text for text in found.text if text.startswith("Speed-up of end-to-end")]
    assert {re.search(r"\d+ tokens in", text)[0] for text in titles} == {"512 tokens in", "2048 tokens in"}  # type: ignore[index]
    bars = [each for each in found.all("g") if each.get("data-category") == "expert_gemm"]
    assert {each["data-arm"] for each in bars} == {"bf16", "fp8", "nvfp4"}


def test_notes_stand_below_the_speed_table_and_what_was_not_begun_is_listed() -> None:
    made = example.comparison()
    made["pairs"][0]["shapes"][1] |= {"notes": {"fp8": ["1 of 1 warm-ups ended without having settled"]}}
    made["skipped"] = [{"arm": "nvfp4", "evaluator": "latency", "reason": "it is emulated"},
                       {"arm": "fp8_block", "evaluator": None, "reason": "there is no checkpoint"}]  # fmt: skip
    found = read(made)
    notes = "Notes on the measurement: fp8 against bf16"
    names = list(found.tables)
    assert names.index(notes) == names.index("Speed: fp8 against bf16 (medians)") + 1
    assert found.tables[notes][1:] == [["b8_i512_o256", "fp8", "1 of 1 warm-ups ended without having settled"]]
    assert found.tables["Arms that were skipped or failed"][-2:] == [
        ["nvfp4", "-", "without latency", "it is emulated"],
        ["fp8_block", "-", "skipped", "there is no checkpoint"],
    ]
    text = markdown.render(made, {})
    assert "1 of 1 warm-ups ended without having settled" in text
    assert "there is no checkpoint" in text


def test_slow_samples_that_nobody_could_see_were_not_read() -> None:
    made = example.comparison()
    for shape in made["pairs"][0]["shapes"]:
        shape["clocks"] = {"sm_mhz": [None, None], "slow_samples": [None, 1]}
    rows = read(made).tables["Fairness and clocks: fp8 against bf16"]
    assert [row[-2:] for row in rows] == [["slow samples of bf16", "slow samples of fp8"], *[["not read", "1"]] * 3]
