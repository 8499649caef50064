"""Two arms' scores compared token by token, against the tables that made them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer

from moe_eval import stats
from moe_eval.comparison import quality
from moe_eval.errors import UsageError
from tests.doubles.table_engine import PAGES, PREFIX, VOCABULARY, Table, cut, encode, measure


def test_a_comparison_is_that_of_the_tables() -> None:
    tables, windows = (Table(), Table(0.5)), cut()
    compared = quality.of_scores(*(measure(table, windows, VOCABULARY) for table in tables), 0.0)
    before, after = (np.concatenate([table.of_page(page) for page in PAGES]) for table in tables)
    ratio = compared.ln_ppl_ratio
    assert ratio is not None
    assert ratio.value == pytest.approx(before.mean() - after.mean(), rel=1e-4)
    assert ratio.low < ratio.value < ratio.high

    inputs = [token for page in PAGES for token in [PREFIX, *encode(wikitext_detokenizer({"page": page}))[:-1]]]
    p, q = (np.exp(table.rows[inputs]) for table in tables)
    divergences = (p * np.log(p / q)).sum(axis=1)
    divergence = compared.divergence
    assert divergence is not None
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
    assert ratio is not None
    assert ratio.error == by_document.error
    assert by_document.error != stats.ln_ratio(reference.by_window(), candidate.by_window()).error


@pytest.mark.parametrize(("noise", "flagged"), [(None, True), (0.0, True), (0.01, True), (0.3, False)])
def test_an_arm_that_is_better_than_it_can_be_is_flagged(noise: float | None, flagged: bool) -> None:
    reference, better = measure(Table(), cut()), measure(Table(better=0.2), cut())
    compared = quality.of_scores(reference, better, noise)
    assert compared.ln_ppl_ratio is not None
    assert compared.ln_ppl_ratio.value == pytest.approx(-0.2, abs=1e-6)
    assert (compared.flag is not None) == flagged
    assert quality.of_scores(better, reference, noise).flag is None


def test_one_document_has_a_divergence_and_says_why_it_has_no_interval() -> None:
    windows = cut(num_chunks=2)
    compared = quality.of_scores(measure(Table(), windows), measure(Table(0.5), windows), None)
    assert (compared.ln_ppl_ratio, compared.flag) == (None, None)
    assert "at least two documents and there are 1" in str(compared.no_interval)
    assert compared.divergence is not None
    assert compared.divergence.mean > 0


def test_arms_of_other_windows_are_refused() -> None:
    reference = measure(Table(), cut())
    for candidate in (measure(Table(), cut(15)), replace(reference, digest="0" * 16)):
        with pytest.raises(UsageError, match="did not score the same windows"):
            quality.of_scores(reference, candidate, None)
