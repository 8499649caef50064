"""The figures of an arm, measured on a model that is a table: what follows a token depends on that token alone."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lm_eval.api.metrics import bits_per_byte, weighted_perplexity
from lm_eval.tasks.wikitext.preprocess_wikitext import process_results

from moe_eval.errors import EngineError, UsageError
from moe_eval.evaluators import quality
from moe_eval.evaluators.quality import Scores
from tests.doubles.table_engine import PAGES, VOCABULARY, Table, cut, measure


@pytest.mark.parametrize("input_len", [1, 16, 64])
def test_word_byte_and_bit_figures_are_those_of_the_harness(input_len: int) -> None:
    table, windows = Table(), cut(input_len)
    figures = quality.figures(measure(table, windows), windows, "pages")
    results = [process_results({"page": page}, (float(table.of_page(page).sum()),)) for page in PAGES]
    assert figures.word_ppl == pytest.approx(weighted_perplexity([row["word_perplexity"] for row in results]))
    assert figures.byte_ppl == pytest.approx(weighted_perplexity([row["byte_perplexity"] for row in results]))
    assert figures.bits_per_byte == pytest.approx(bits_per_byte([row["bits_per_byte"] for row in results]))


def test_perplexity_is_the_exponential_of_the_mean_loss_of_tokens_and_of_every_chunk() -> None:
    table, windows = Table(), cut()
    figures = quality.figures(measure(table, windows), windows, "pages")
    every = np.concatenate([table.of_page(page) for page in PAGES])
    assert figures.perplexity == pytest.approx(math.exp(-every.mean()), rel=1e-6)
    ends = np.cumsum([len(window.continuation) for window in windows.windows])
    chunked = [math.exp(-part.mean()) for part in np.split(every, ends[:-1])]
    assert figures.per_chunk_ppls == pytest.approx(tuple(chunked), rel=1e-6)
    assert len(chunked) == len(windows.windows)
    assert figures.tokens == len(every)
    assert (figures.documents, figures.whole_documents) == (5, 5)


def test_a_document_that_is_cut_off_counts_for_tokens_and_not_for_words() -> None:
    table, every = Table(), cut()
    windows = cut(num_chunks=every.total - 2)
    figures = quality.figures(measure(table, windows), windows, "pages")
    whole = [at for at in range(len(PAGES)) if windows.documents.count(at) == every.documents.count(at)]
    assert 0 < len(whole) < len(PAGES)
    results = [process_results({"page": PAGES[at]}, (float(table.of_page(PAGES[at]).sum()),)) for at in whole]
    assert figures.word_ppl == pytest.approx(weighted_perplexity([row["word_perplexity"] for row in results]))
    assert (figures.documents, figures.whole_documents) == (len(PAGES), len(whole))
    for name in ("word", "byte"):
        counted = figures.words if name == "word" else figures.bytes
        assert counted == sum(row[f"{name}_perplexity"][1] for row in results)
    assert figures.tokens == sum(len(window.continuation) for window in windows.windows)


def test_without_a_whole_document_there_are_no_word_figures() -> None:
    windows = cut(num_chunks=1)
    figures = quality.figures(measure(Table(), windows), windows, "pages")
    assert (figures.word_ppl, figures.byte_ppl, figures.bits_per_byte) == (None, None, None)
    assert (figures.words, figures.bytes, figures.whole_documents, figures.documents) == (0, 0, 0, 1)
    assert figures.per_chunk_ppls == (pytest.approx(figures.perplexity),)


def test_scores_fall_apart_by_document_and_by_window() -> None:
    table, windows = Table(), cut()
    scores = measure(table, windows)
    for part, page in zip(scores.by_document(), PAGES, strict=True):
        assert part == pytest.approx(table.of_page(page), rel=1e-6)
    assert [len(part) for part in scores.by_window()] == [len(window.continuation) for window in windows.windows]
    assert np.array_equal(np.concatenate(scores.by_window()), scores.logprobs)


def test_measuring_asks_for_128_top_tokens_and_tells_of_every_window() -> None:
    table, windows, indices = Table(), cut(), []
    scores = quality.measure(table, windows, done=lambda index, _: indices.append(index))  # type: ignore[arg-type]
    assert table.top_ks == [quality.TOP_K] == [128]
    assert sorted(indices) == list(range(len(windows.windows)))
    assert scores.top_ids.shape == (len(scores.logprobs), VOCABULARY)


def test_windows_longer_than_the_models_are_refused() -> None:
    with pytest.raises(UsageError, match=r"--input_len 16 is longer than the window of 15 tokens. Give at most 15"):
        measure(Table(max_length=15), cut(16))
    measure(Table(max_length=16), cut(16))


def test_scores_are_the_same_after_saving_and_loading(tmp_path: Path) -> None:
    reference = measure(Table(), cut())
    scores = measure(Table(0.5), cut(), reference=reference)
    scores.save(tmp_path / "arm.npz")
    loaded = Scores.load(tmp_path / "arm.npz")
    assert loaded.digest == scores.digest == cut().digest
    assert loaded.reference_digest == scores.reference_digest == reference.ids_digest
    for name in ("logprobs", "lengths", "documents", "top_ids", "top_logprobs", "of_reference"):
        before, after = getattr(scores, name), getattr(loaded, name)
        assert before.dtype == after.dtype
        assert np.array_equal(before, after)
    floor = quality.noise_floor(scores, loaded, 1)
    assert floor.ln_ppl_ratio is not None
    assert floor.ln_ppl_ratio.error == 0


def test_the_noise_floor_is_the_second_pass_over_the_first() -> None:
    table, alone, windows = Table(), Table(0.5), cut()
    scores, again = measure(table, windows, VOCABULARY), measure(alone, windows, VOCABULARY)
    floor = quality.noise_floor(scores, again, 1)
    assert floor.ln_ppl_ratio is not None
    before, after = (np.concatenate([arm.of_page(page) for page in PAGES]) for arm in (table, alone))
    assert floor.batch_size == 1
    assert floor.ln_ppl_ratio.value == pytest.approx(before.mean() - after.mean(), rel=1e-4)
    assert floor.ln_ppl_ratio.low < floor.ln_ppl_ratio.value < floor.ln_ppl_ratio.high
    assert floor.no_interval is None
    assert vars(floor.divergence) == vars(quality.compare(scores, again))


def test_the_noise_floor_of_one_document_says_why_it_has_no_interval() -> None:
    windows = cut(num_chunks=1)
    floor = quality.noise_floor(measure(Table(), windows), measure(Table(0.5), windows), 1)
    assert floor.ln_ppl_ratio is None
    assert "at least two documents" in str(floor.no_interval)
    assert floor.divergence.mean > 0


def test_scores_of_other_windows_have_no_noise_floor() -> None:
    scores = measure(Table(), cut())
    for changed in (measure(Table(), cut(15)), replace(scores, digest="0" * 16)):
        with pytest.raises(UsageError, match="did not score the same windows"):
            quality.noise_floor(scores, changed, 1)


@pytest.mark.parametrize("alone", [False, True])
def test_the_reference_s_tokens_are_scored_where_the_engine_can(alone: bool) -> None:
    table, windows = Table(0.5), cut()
    reference = measure(Table(), windows)
    scores = quality.measure(table, windows, 5, alone=alone, reference=reference)  # type: ignore[arg-type]
    assert scores.reference_digest == reference.ids_digest
    contexts = np.concatenate([window.inputs[-len(window.continuation) :] for window in windows.windows])
    expected = np.take_along_axis(table.rows[contexts], reference.top_ids.astype(int), 1)
    np.testing.assert_allclose(scores.of_reference, expected, rtol=1e-6)
    assert quality.compare(reference, scores).kind == "reference ids"


def test_without_the_reference_s_tokens_the_divergence_is_capped() -> None:
    windows = cut()
    reference, other = measure(Table(), windows), measure(Table(0.7), windows)
    unable = measure(Table(0.5, scores_ids=False), windows, reference=reference)
    of_other = measure(Table(0.5), windows, reference=other)
    of_other_windows = measure(Table(0.5), windows, reference=measure(Table(), cut(15)))
    for scores in (unable, of_other, of_other_windows, measure(Table(0.5), windows)):
        divergence = quality.compare(reference, scores)
        assert (divergence.kind, divergence.is_lower_bound) == ("capped", True)
        exact = quality.compare(reference, measure(Table(0.5), windows, reference=reference))
        assert 0 < divergence.mean <= exact.mean


@pytest.mark.parametrize("part", ["logprobs", "top_logprobs", "of_reference"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_no_number_is_refused_with_its_place(part: str, value: float) -> None:
    windows = cut()
    scores = measure(Table(0.5), windows, reference=measure(Table(), windows))
    scores.check()
    window = 3
    place = int(scores.lengths[:window].sum()) + 2
    getattr(scores, part)[place] = value
    getattr(scores, part)[-1] = value
    expected = rf"of 2 of {len(scores.logprobs)} tokens .* token 2 of window 3 in document {windows.documents[window]},"
    with pytest.raises(EngineError, match=expected):
        scores.check()
