"""Quality of two recorded arms: scores of tokens, what was computed before, and what is left without them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer

from moe_eval import stats
from moe_eval.comparison import gate, gate_text, quality
from moe_eval.comparison.gate import GateResult
from moe_eval.comparison.quality import compare
from moe_eval.errors import UsageError
from moe_eval.stats import Estimate
from tests.doubles import recorded_arms as made
from tests.doubles.comparisons import comparison
from tests.doubles.recorded_arms import pair, scored
from tests.doubles.table_engine import PAGES, PREFIX, VOCABULARY, Table, cut, encode, measure


def test_quality_of_any_pair_by_the_scores_of_its_tokens(tmp_path: Path) -> None:
    arms = scored(tmp_path, {"bf16": 0.0, "fp8": 0.02, "nvfp4": 0.1})
    compared = compare(arms[0], arms[1])
    assert compared.ln_ppl_ratio.value == pytest.approx(0.02, rel=1e-4)  # so many nats of every token
    assert compared.ppl_change == pytest.approx(math.exp(0.02) - 1, rel=1e-4)
    assert compared.noise_floor.value == pytest.approx(1e-4, rel=0.01)
    assert compared.largest_noise == compared.noise_floor.high
    assert compared.run_id == made.RUN
    # probabilities of three tokens, written down: D(reference || other) of 0.6, 0.3, 0.1 and the changed ones
    p, q = np.array([0.6, 0.3, 0.1]), np.array([0.6 - 0.002, 0.3, 0.1 + 0.002])
    assert compared.divergence.mean == pytest.approx(float((p * np.log(p / q)).sum()), rel=1e-2)
    assert compared.divergence.same_top1 == 1
    between, back = compare(arms[1], arms[2]), compare(arms[2], arms[1])
    assert between.ln_ppl_ratio.value == pytest.approx(0.08, rel=1e-4)
    for name, reverse in (("value", "value"), ("low", "high"), ("high", "low")):
        expected = -getattr(back.ln_ppl_ratio, reverse)
        assert getattr(between.ln_ppl_ratio, name) == pytest.approx(expected, abs=1e-9)
    assert (1 + between.ppl_change) * (1 + back.ppl_change) == pytest.approx(1)
    assert back.flag is None  # a higher precision scores better, as it should


def test_without_arrays_what_was_computed_before_counts_else_the_plain_change(tmp_path: Path) -> None:
    arms = scored(tmp_path, {"bf16": 0.0, "fp8": 0.02, "nvfp4": 0.1})
    before = compare(arms[0], arms[1])
    gone = [replace(arm, folder=None) for arm in arms]
    assert compare(gone[0], replace(gone[1], compared={"bf16": before})) == before
    elsewhere = replace(arms[1], folder=tmp_path / "elsewhere", compared={"bf16": before})
    assert compare(arms[0], elsewhere) == before
    plain = compare(gone[1], gone[2])
    assert plain.ppl_change == pytest.approx(compare(arms[1], arms[2]).ppl_change, rel=1e-3)
    assert (plain.ln_ppl_ratio, plain.divergence) == (None, None)
    assert plain.no_interval == "The scores of the tokens are not at hand."
    assert "% perplexity (no interval)" in pair(gone[1], gone[2]).sentence
    # another run has an arm of this name as well
    foreign = replace(gone[0], quality=made.quality("bf16", made.scores(), run_id="f" * 32))
    assert compare(foreign, replace(gone[1], compared={"bf16": before})).ln_ppl_ratio is None


def test_damaged_arrays_and_those_of_other_windows_are_refused(tmp_path: Path) -> None:
    arms = scored(tmp_path, {"bf16": 0.0, "fp8": 0.02})
    made.scores(0.02, digest="e" * 16).save(tmp_path / "ppl_fp8_cpu.npz")
    with pytest.raises(UsageError, match=r"did not score the same windows\. Give both"):
        compare(*arms)
    (tmp_path / "ppl_fp8_cpu.npz").write_bytes(b"PK")
    with pytest.raises(UsageError, match=r"ppl_fp8_cpu.npz is damaged .*Run moe-eval ppl again"):
        compare(*arms)


def test_a_lower_precision_that_scores_better_is_told_of(tmp_path: Path) -> None:
    compared = pair(*scored(tmp_path, {"bf16": 0.0, "fp8": -0.05}))
    assert "implausible" in str(compared.quality.flag)
    assert "Implausible" in compared.sentence


def test_scales_that_were_calibrated_on_what_was_scored_are_told_of(tmp_path: Path) -> None:
    for source, is_told in (("16 windows of moe_sample", True), ("16 windows of wikitext", False)):
        arms = scored(tmp_path, {"bf16": 0.0, "fp8": 0.02}, arguments={"calibration": source})
        assert ("calibrated" in str(compare(*arms).calibration)) == is_told


def test_scores_of_random_weights_decide_nothing(tmp_path: Path) -> None:
    compared = pair(*scored(tmp_path, {"bf16": 0.0, "fp8": 0.02}, weights="random"))
    assert compared.quality.divergence.mean > 0
    assert "random" in str(compared.quality.flag)
    assert compared.verdict == "open"
    assert "perplexity" not in compared.sentence
    for condition in ("ln_ppl<=9", "kld<=9", "top1>=0"):
        result, (line,) = gate.check(comparison(compared), gate_text.parse(condition))
        assert result is GateResult.UNDECIDED
        assert "the weights are random" in line


def test_one_document_gives_a_change_without_an_interval(tmp_path: Path) -> None:
    compared = compare(*scored(tmp_path, {"bf16": 0.0, "fp8": 0.02}, documents=1))
    assert compared.ln_ppl_ratio is None
    assert "at least two documents" in str(compared.no_interval)
    assert compared.ppl_change == pytest.approx(math.exp(0.01) - 1, rel=1e-3)  # the one document is 0.01 nats worse


def test_a_ratio_that_is_no_number_says_so(tmp_path: Path) -> None:
    arms = scored(tmp_path, {"bf16": 0.0, "fp8": 0.02})
    broken = made.scores(0.02)
    broken.logprobs[3] = np.nan
    broken.save(tmp_path / "ppl_fp8_cpu.npz")
    compared = pair(*arms)
    assert compared.quality.ln_ppl_ratio is None
    (line,) = gate.check(comparison(compared), gate_text.parse("ln_ppl<=9"))[1]
    assert line.endswith("there is no interval. The ratio of perplexities is no number.")


def test_a_comparison_is_that_of_the_tables() -> None:
    tables, windows = (Table(), Table(0.5)), cut()
    compared = quality.of_scores(*(measure(table, windows, VOCABULARY) for table in tables), None)
    before, after = (np.concatenate([table.of_page(page) for page in PAGES]) for table in tables)
    ratio = compared.ln_ppl_ratio
    assert ratio.value == pytest.approx(before.mean() - after.mean(), rel=1e-4)
    assert ratio.low < ratio.value < ratio.high

    inputs = [token for page in PAGES for token in [PREFIX, *encode(wikitext_detokenizer({"page": page}))[:-1]]]
    p, q = (np.exp(table.rows[inputs]) for table in tables)
    divergences = (p * np.log(p / q)).sum(axis=1)
    divergence = compared.divergence
    assert divergence.mean == pytest.approx(divergences.mean(), abs=1e-5)
    assert divergence.median == pytest.approx(np.median(divergences), abs=1e-5)
    assert divergence.p99 == pytest.approx(np.quantile(divergences, 0.99), abs=1e-5)
    assert divergence.same_top1 == (p.argmax(1) == q.argmax(1)).mean()
    assert divergence.k == VOCABULARY
    assert (compared.no_interval, compared.flag) == (None, None)


def test_the_error_comes_from_documents_and_not_from_windows() -> None:
    reference, candidate = measure(Table(), cut()), measure(Table(0.5), cut())
    by_document = stats.ln_ratio(reference.by_document(), candidate.by_document())
    ratio = quality.of_scores(reference, candidate, None).ln_ppl_ratio
    assert ratio.error == by_document.error
    assert by_document.error != stats.ln_ratio(reference.by_window(), candidate.by_window()).error


@pytest.mark.parametrize(("noise", "flagged"), [(None, True), (0.0, True), (0.01, True), (0.3, False)])
def test_an_arm_that_is_better_than_it_can_be_is_flagged(noise: float | None, flagged: bool) -> None:
    floor = None if noise is None else Estimate(0.0, 0.0, -noise, noise, 4)
    reference, better = measure(Table(), cut()), measure(Table(better=0.2), cut())
    compared = quality.of_scores(reference, better, floor)
    assert compared.ln_ppl_ratio.value == pytest.approx(-0.2, abs=1e-6)
    assert (compared.flag is not None) == flagged
    assert quality.of_scores(better, reference, floor).flag is None


def test_one_document_has_a_divergence_and_says_why_it_has_no_interval() -> None:
    windows = cut(num_chunks=1)
    compared = quality.of_scores(measure(Table(), windows), measure(Table(0.5), windows), None)
    assert (compared.ln_ppl_ratio, compared.flag) == (None, None)
    assert "at least two documents and there are 1" in str(compared.no_interval)
    assert compared.divergence.mean > 0


def test_arms_of_other_windows_are_refused() -> None:
    reference = measure(Table(), cut())
    for candidate in (measure(Table(), cut(15)), replace(reference, digest="0" * 16)):
        with pytest.raises(UsageError, match="did not score the same windows"):
            quality.of_scores(reference, candidate, None)
