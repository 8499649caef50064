"""The figures of an arm, measured on a model that is a table: what follows a token depends on that token alone."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lm_eval.api.metrics import bits_per_byte, weighted_perplexity
from lm_eval.tasks.wikitext.preprocess_wikitext import process_results

from moe_eval import stats
from moe_eval.errors import UsageError
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
    table = Table()
    first = sum(index == 0 for index in cut().documents)
    windows = cut(num_chunks=first + 1)
    figures = quality.figures(measure(table, windows), windows, "pages")
    counts = process_results({"page": PAGES[0]}, (float(table.of_page(PAGES[0]).sum()),))
    assert figures.word_ppl == pytest.approx(weighted_perplexity([counts["word_perplexity"]]))
    assert (figures.documents, figures.whole_documents) == (2, 1)
    assert (figures.words, figures.bytes) == (counts["word_perplexity"][1], counts["byte_perplexity"][1])
    assert figures.tokens == len(table.of_page(PAGES[0])) + 16


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


def test_measuring_asks_for_64_top_tokens_and_tells_of_every_window() -> None:
    table, windows, indices = Table(), cut(), []
    scores = quality.measure(table, windows, done=lambda index, _: indices.append(index))  # type: ignore[arg-type]
    assert table.top_ks == [quality.TOP_K] == [64]
    assert sorted(indices) == list(range(len(windows.windows)))
    assert scores.top_ids.shape == (len(scores.logprobs), VOCABULARY)


def test_windows_longer_than_the_models_are_refused() -> None:
    with pytest.raises(UsageError, match=r"--input_len 16 is longer than the window of 15 tokens. Give at most 15"):
        measure(Table(max_length=15), cut(16))
    measure(Table(max_length=16), cut(16))


def test_scores_are_the_same_after_saving_and_loading(tmp_path: Path) -> None:
    scores = measure(Table(), cut())
    scores.save(tmp_path / "arm.npz")
    loaded = Scores.load(tmp_path / "arm.npz")
    assert loaded.digest == scores.digest == cut().digest
    for name in ("logprobs", "lengths", "documents", "top_ids", "top_logprobs"):
        before, after = getattr(scores, name), getattr(loaded, name)
        assert before.dtype == after.dtype
        assert np.array_equal(before, after)
    floor = quality.noise_floor(scores, loaded, 1)
    assert floor is not None
    assert floor.ln_ppl_ratio is not None
    assert floor.ln_ppl_ratio.error == 0


def test_the_noise_floor_is_the_second_pass_over_the_first() -> None:
    table, alone, windows = Table(), Table(0.5), cut()
    scores, again = measure(table, windows, VOCABULARY), measure(alone, windows, VOCABULARY)
    floor = quality.noise_floor(scores, again, 1)
    assert floor is not None
    assert floor.ln_ppl_ratio is not None
    before, after = (np.concatenate([arm.of_page(page) for page in PAGES]) for arm in (table, alone))
    assert floor.batch_size == 1
    assert floor.ln_ppl_ratio.value == pytest.approx(before.mean() - after.mean(), rel=1e-4)
    assert floor.ln_ppl_ratio.low < floor.ln_ppl_ratio.value < floor.ln_ppl_ratio.high
    assert floor.no_interval is None
    divergence = stats.divergence(scores.top_ids, scores.top_logprobs, again.top_ids, again.top_logprobs)
    assert vars(floor.divergence) == vars(divergence)


def test_the_noise_floor_of_one_document_says_why_it_has_no_interval() -> None:
    windows = cut(num_chunks=2)
    floor = quality.noise_floor(measure(Table(), windows), measure(Table(0.5), windows), 1)
    assert floor is not None
    assert floor.ln_ppl_ratio is None
    assert "at least two documents" in str(floor.no_interval)
    assert floor.divergence.mean > 0


def test_scores_that_are_no_numbers_or_of_other_windows_have_no_noise_floor() -> None:
    scores = measure(Table(), cut())
    broken = replace(scores, logprobs=np.full_like(scores.logprobs, np.nan))
    assert quality.noise_floor(scores, broken, 1) is None
    for changed in (measure(Table(), cut(15)), replace(scores, digest="0" * 16)):
        with pytest.raises(UsageError, match="did not score the same windows"):
            quality.noise_floor(scores, changed, 1)
