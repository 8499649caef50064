"""Fixed windows of a data set, against the windows and counts of lm-evaluation-harness itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks.wikitext.preprocess_wikitext import process_results, wikitext_detokenizer

from moe_eval.data import documents, scoring_windows
from moe_eval.data.scoring_windows import WindowSet
from moe_eval.errors import UsageError
from tests.conftest import SHIPPED

PREFIX = 0
PAGES = [" = One = \n a b , c . \n", " = Two = \n d @-@ e \n\n f ", " = Three = \n é ( g ) " * 9]


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def cut(pages: list[str] = PAGES, input_len: int = 10, num_chunks: int = 0, prefix: int = PREFIX) -> WindowSet:
    return scoring_windows.cut(pages, letters, prefix, input_len, num_chunks)


def scored(windows: WindowSet) -> dict[int, list[int]]:
    """The scored tokens of every document."""
    tokens: dict[int, list[int]] = {}
    for document, window in zip(windows.documents, windows.windows, strict=True):
        tokens.setdefault(document, []).extend(window.continuation)
    return tokens


@pytest.fixture(scope="module")
def hf() -> HFLM:
    return HFLM(str(SHIPPED), dtype="float32", device="cpu", batch_size=1, max_length=128)


def test_windows_are_those_that_the_harness_scores(hf: HFLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness's own hf model rolls over the sample's documents, and what it would score is caught."""
    scored_by_hf: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def catch(requests: list[tuple[Any, list[int], list[int]]], **_: Any) -> list[tuple[float, bool]]:
        scored_by_hf.extend((tuple(context), tuple(continuation)) for _, context, continuation in requests)
        return [(0.0, True)] * len(requests)

    monkeypatch.setattr(hf, "_loglikelihood_tokens", catch)
    pages = scoring_windows.read_documents("moe_sample")
    hf.loglikelihood_rolling(
        [Instance("loglikelihood_rolling", {}, (wikitext_detokenizer({"page": page}),), 0) for page in pages],
        disable_tqdm=True,
    )
    encode = hf.tokenizer.encode
    windows = scoring_windows.cut(pages, lambda text: list(encode(text, verbose=False)), hf.prefix_token_id, 128, 0)
    assert [(window.context, window.continuation) for window in windows.windows] == scored_by_hf
    assert windows.total == len(scored_by_hf) > len(pages)
    metrics = [process_results({"page": page}, (0.0,)) for page in pages]
    assert list(windows.word_counts.values()) == [metric["word_perplexity"][1] for metric in metrics]
    assert list(windows.byte_counts.values()) == [metric["byte_perplexity"][1] for metric in metrics]


@given(st.lists(st.text("ab \né", min_size=1, max_size=40), min_size=1, max_size=5), st.integers(1, 12))
def test_every_token_is_scored_once_from_windows_that_fit(pages: list[str], input_len: int) -> None:
    windows = cut(pages, input_len)
    expected = [letters(wikitext_detokenizer({"page": page})) for page in pages]
    assert scored(windows) == {index: tokens for index, tokens in enumerate(expected) if tokens}
    for document, window in zip(windows.documents, windows.windows, strict=True):
        assert len(window.inputs) <= input_len
        every = [PREFIX, *expected[document]]
        assert tuple(window.context + window.continuation) in {
            tuple(every[start : start + len(window.context + window.continuation)]) for start in range(len(every))
        }
    assert list(windows.documents) == sorted(windows.documents)


def test_the_first_token_of_a_document_is_conditioned_on_the_prefix() -> None:
    windows = cut(prefix=7)
    firsts = [windows.windows[windows.documents.index(document)] for document in range(3)]
    assert [window.context for window in firsts] == [(7,)] * 3


@pytest.mark.parametrize("input_len", [1, 7, 10, 1000])
def test_num_chunks_spreads_windows_evenly_and_counts_whole_documents_alone(input_len: int) -> None:
    every = cut(input_len=input_len)
    assert list(every.word_counts) == [0, 1, 2]
    for count in range(1, every.total + 3):
        windows = cut(input_len=input_len, num_chunks=count)
        numbered = [*zip(every.documents, every.windows, strict=True)]
        taken = [*zip(windows.documents, windows.windows, strict=True)]
        assert len(taken) == min(count, every.total)
        share = every.total / len(taken)  # one of every part of the data set, whatever the documents
        for part, entry in enumerate(taken):
            assert entry in numbered[int(part * share) : int((part + 1) * share + 1)]
        assert windows.total == every.total
        assert windows.input_len == input_len
        whole = [index for index in range(3) if windows.documents.count(index) == every.documents.count(index)]
        assert windows.word_counts == {index: len(re.split(r"\s+", PAGES[index])) for index in whole}
        assert windows.byte_counts == {index: len(PAGES[index].encode()) for index in whole}


def test_a_few_windows_come_from_about_all_documents() -> None:
    """As of WikiText-2: 62 documents of unequal length, of which the first 100 windows were eight."""
    sizes = [10 * (4 + at % 20) for at in range(62)]
    windows = cut(["x" * size for size in sizes], 10, 100)
    assert len(windows.windows) == 100
    assert len(set(windows.documents)) >= 50
    for document in (0, 19, 59):
        share = windows.documents.count(document) / 100
        assert share == pytest.approx(sizes[document] / sum(sizes), abs=0.01), "by their share of the text"


def test_words_and_bytes_are_counted_before_the_detokeniser() -> None:
    assert cut([" a @-@ é "]).word_counts == {0: 5}
    assert cut([" a @-@ é "]).byte_counts == {0: 10}
    assert len(cut([" a @-@ é "]).windows[0].continuation) == len(" a-é ")


def test_the_digest_is_the_same_for_the_same_and_another_for_anything_else() -> None:
    sets = [
        cut(),
        cut(num_chunks=5),
        cut(input_len=11),
        cut(prefix=1),
        cut(PAGES[::-1]),
        cut([PAGES[0] + "x", *PAGES[1:]]),
        cut(PAGES[:2]),
        cut(["".join(PAGES)]),
        scoring_windows.cut(PAGES, lambda text: [ord(letter) + 1 for letter in text], PREFIX, 10, 0),
    ]
    assert len({windows.digest for windows in sets}) == len(sets)
    assert cut().digest == sets[0].digest == cut(num_chunks=sets[0].total).digest
    assert all(re.fullmatch("[0-9a-f]{16}", windows.digest) for windows in sets)


def test_the_digest_tells_where_documents_begin() -> None:
    """Windows of one token each and the same prefix: only the document's number differs."""
    joined = scoring_windows.cut(["aa"], letters, ord("a"), 1, 0)
    split = scoring_windows.cut(["a", "a"], letters, ord("a"), 1, 0)
    assert joined.windows == split.windows
    assert joined.digest != split.digest


@pytest.mark.parametrize(("input_len", "num_chunks"), [(0, 1), (-1, 1), (10, -1)])
def test_numbers_that_make_no_window_are_refused(input_len: int, num_chunks: int) -> None:
    with pytest.raises(UsageError, match=f"--input_len {input_len} --num_chunks {num_chunks} make no windows"):
        cut(input_len=input_len, num_chunks=num_chunks)


def test_wikitext_local_has_the_words_and_bytes_of_wikitext_2(monkeypatch: pytest.MonkeyPatch, wikitext: Path) -> None:
    monkeypatch.setenv(documents.VARIABLE, str(wikitext))
    pages = scoring_windows.read_documents("wikitext_local")
    windows = scoring_windows.cut(pages, lambda text: text.split(" "), PREFIX, 2048, 0)  # type: ignore[arg-type, return-value]
    assert len(set(windows.documents)) == len(pages) == 62
    assert sum(windows.word_counts.values()) == 241_335
    assert sum(windows.byte_counts.values()) == 1_290_527


def test_moe_sample_is_the_shipped_sample() -> None:
    assert scoring_windows.read_documents("moe_sample") == list(documents.moe_sample()["test"]["page"])


def test_wikitext_is_the_test_split_of_the_harnesss_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def load(*names: str, **options: str) -> Any:
        calls.append((names, options))
        return datasets.Dataset.from_dict({"page": PAGES})

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert scoring_windows.read_documents("wikitext") == PAGES
    assert calls == [(("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1"), {"split": "test"})]


def wrapped() -> Exception:
    outer = RuntimeError("outer")
    outer.__cause__ = ConnectionError("no route")
    return outer


UNREACHABLE = r"the hub cannot be reached\. Set MOE_EVAL_WIKITEXT .* give moe_sample"


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (ConnectionError("x"), UsageError, UNREACHABLE),
        (wrapped(), UsageError, UNREACHABLE),
        (ValueError("broken"), ValueError, "broken"),
    ],
    ids=["plain", "wrapped", "not called a missing network"],
)
def test_an_unreachable_hub_is_explained(
    monkeypatch: pytest.MonkeyPatch, error: Exception, raised: type[Exception], message: str
) -> None:
    def load(*_: str, **__: str) -> Any:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(raised, match=message):
        scoring_windows.read_documents("wikitext")


def test_what_is_no_data_set_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no data set 'c4'\. Give one of wikitext, wikitext_local, moe_sample"):
        scoring_windows.read_documents("c4")
    with pytest.raises(UsageError, match="Set MOE_EVAL_WIKITEXT"):
        scoring_windows.read_documents("wikitext_local")
