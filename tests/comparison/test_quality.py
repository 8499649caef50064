"""Quality of two recorded arms: recorded figures, scores of tokens, and what is left without them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from moe_eval.comparison import gate, pairs
from moe_eval.records.by_arm import ArmResults
from moe_eval.report import markdown
from tests.comparison.test_pairs import pair, scored


def test_quality_of_the_recorded_pair_and_of_any_other(tmp_path: Path) -> None:
    arms = scored(tmp_path, {"bf16": 0.0, "fp8": 0.02, "nvfp4": 0.1})
    assert arms[1].ppl is not None
    assert arms[2].ppl is not None
    recorded = pair(arms[0], arms[1])["quality"]
    assert recorded["ln_ppl_ratio"] == arms[1].ppl["ln_ppl_ratio"]
    assert recorded["ln_ppl_ratio"]["value"] == pytest.approx(0.02, rel=1e-4)  # so many nats of every token
    assert recorded["ppl_change"] == pytest.approx(math.exp(0.02) - 1, rel=1e-4)
    assert recorded["noise_floor"] == pytest.approx(1e-4, rel=0.01)
    # probabilities of three tokens, written down: D(reference || other) of 0.6, 0.3, 0.1 and the changed ones
    p, q = np.array([0.6, 0.3, 0.1]), np.array([0.6 - 0.002, 0.3, 0.1 + 0.002])
    assert recorded["kld_mean"] == pytest.approx(float((p * np.log(p / q)).sum()), rel=1e-2)
    assert recorded["same_top1"] == 1
    # no record compares these two
    between = pair(arms[1], arms[2])["quality"]
    assert between["ln_ppl_ratio"]["value"] == pytest.approx(0.08, rel=1e-4)
    back = pair(arms[2], arms[1])["quality"]
    for name, reverse in (("value", "value"), ("low", "high"), ("high", "low")):
        assert between["ln_ppl_ratio"][name] == pytest.approx(-back["ln_ppl_ratio"][reverse], abs=1e-9)
    assert (1 + between["ppl_change"]) * (1 + back["ppl_change"]) == pytest.approx(1)
    assert back["flag"] is None  # a higher precision scores better, as it should
    gone = [ArmResults(each.name, each.precision, ppl=each.ppl) for each in arms]
    assert pair(gone[0], gone[1])["quality"] == recorded
    elsewhere = ArmResults("fp8", "fp8", ppl=arms[1].ppl, folder=tmp_path / "elsewhere")
    assert pair(arms[0], elsewhere)["quality"] == recorded
    plain = pair(gone[1], gone[2])["quality"]
    assert plain["ppl_change"] == pytest.approx(between["ppl_change"], rel=1e-3)
    assert (plain["ln_ppl_ratio"], plain["kld_mean"], plain["same_top1"]) == (None, None, None)
    assert plain["no_interval"] == "the scores of the tokens are not at hand"
    assert "% perplexity (no interval)" in pair(gone[1], gone[2])["sentence"]


def test_a_lower_precision_that_scores_better_is_told_of(tmp_path: Path) -> None:
    found = pair(*scored(tmp_path, {"bf16": 0.0, "fp8": -0.05}))
    assert "implausible" in found["quality"]["flag"]
    assert "implausible" in found["sentence"]


def test_scales_that_were_calibrated_on_what_was_scored_are_told_of(tmp_path: Path) -> None:
    arms = scored(tmp_path, {"bf16": 0.0, "fp8": 0.02})
    assert arms[1].ppl is not None
    for source, told in (("16 windows of moe_sample", True), ("16 windows of wikitext", False)):
        arms[1].ppl["labels"]["engine"]["arguments"] = {"calibration": source}
        found = pairs.make(arms)
        assert bool(found["pairs"][0]["quality"]["calibration"]) == told
        assert ("calibrated" in markdown.render(found, {})) == told


def test_scores_of_random_weights_decide_nothing(tmp_path: Path) -> None:
    arms = scored(tmp_path, {"bf16": 0.0, "fp8": 0.02})
    for each in arms:
        assert each.ppl is not None
        each.ppl["labels"]["engine"]["weights"] = "random"
    found = pair(*arms)
    assert found["quality"]["kld_mean"] > 0
    assert "random" in found["quality"]["flag"]
    assert found["verdict"] == "inconclusive"
    assert "perplexity" not in found["sentence"]
    for condition in ("ln_ppl<=9", "kld<=9", "top1>=0"):
        code, (line,) = gate.check({"pairs": [found]}, gate.parse(condition))
        assert code == gate.UNDECIDED
        assert "the weights are random" in line


def test_one_document_gives_a_change_without_an_interval(tmp_path: Path) -> None:
    quality = pair(*scored(tmp_path, {"bf16": 0.0, "fp8": 0.02}, documents=1))["quality"]
    assert quality["ln_ppl_ratio"] is None
    assert "at least two documents" in quality["no_interval"]
    assert quality["ppl_change"] == pytest.approx(math.exp(0.01) - 1, rel=1e-3)  # the one document is 0.01 nats worse


def test_a_ratio_that_is_no_number_says_so(tmp_path: Path) -> None:
    arms = scored(tmp_path, {"bf16": 0.0, "fp8": 0.02})
    assert arms[1].ppl is not None
    arms[1].ppl["ln_ppl_ratio"] = dict.fromkeys(("value", "error", "low", "high"))  # NaN, as it is read back
    found = pair(*arms)
    assert found["quality"]["ln_ppl_ratio"] is None
    (line,) = gate.check({"pairs": [found]}, gate.parse("ln_ppl<=9"))[1]
    assert line.endswith("there is no interval; the ratio of perplexities is no number")
