"""MoeLM's log-likelihoods against those of the harness's own `hf` model on the same float32 weights."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lm_eval.models.huggingface import HFLM

from moe_eval.checkpoint.shipped import SHIPPED, SHIPPED_NOTE
from moe_eval.data.documents import SAMPLE
from moe_eval.errors import UsageError
from moe_eval.harness.model import MoeLM

Answers = list[tuple[float, bool]]
SENTENCE = "A sundial tells the time of day from the place where a shadow falls"
PAGE = SAMPLE.read_text(encoding="utf-8")[:1500]
CHOICES = (" cat", " dog", " sun", " the", " moon and stars", " of the Earth , which turns once a day")


@pytest.fixture(scope="module")
def hf_64(hf_like: Callable[..., HFLM]) -> HFLM:
    return hf_like(max_length=64)


@pytest.fixture(scope="module")
def moe_64(moe_like: Callable[..., MoeLM]) -> MoeLM:
    return moe_like(max_length=64)


def assert_same(answers: Answers, of_hf: Answers) -> None:
    assert [score for score, _ in answers] == pytest.approx([score for score, _ in of_hf], rel=1e-4)
    assert [greedy for _, greedy in answers] == [greedy for _, greedy in of_hf]


def test_greedy_flag_is_true_for_the_text_hf_generates(hf: HFLM, moe: MoeLM, requests_of: Any) -> None:
    [text] = hf.generate_until(requests_of("generate_until", (SENTENCE, {"until": [], "max_gen_toks": 5})))
    requests = requests_of("loglikelihood", (SENTENCE, text), (SENTENCE, f"{text} zebra"))
    answers = moe.loglikelihood(requests)
    assert [greedy for _, greedy in answers] == [True, False]
    assert_same(answers, hf.loglikelihood(requests))


def test_context_longer_than_the_window_is_cut_on_the_left_as_hf_does(
    hf_64: HFLM, moe_64: MoeLM, requests_of: Any, caplog: pytest.LogCaptureFixture
) -> None:
    requests = requests_of("loglikelihood", *((PAGE, choice) for choice in CHOICES), ("The sun", " rises"))
    with caplog.at_level(logging.WARNING):
        answers = moe_64.loglikelihood(requests)
    [warning] = [row.getMessage() for row in caplog.records if row.name == "lm_eval.moe_eval"]
    assert "6 of 7 contexts" in warning
    assert "window of 64 tokens" in warning
    assert_same(answers, hf_64.loglikelihood(requests))


def test_contexts_around_the_window_s_length_equal_hf(hf_64: HFLM, moe_64: MoeLM, requests_of: Any) -> None:
    ids = moe_64.tok_encode(PAGE)
    pairs = [(moe_64.tok_decode(ids[:length]), " the Earth") for length in (61, 62, 63, 64, 65)]
    requests = requests_of("loglikelihood", *pairs)
    assert_same(moe_64.loglikelihood(requests), hf_64.loglikelihood(requests))


def test_continuation_as_long_as_the_window_equals_hf(hf_64: HFLM, moe_64: MoeLM, requests_of: Any) -> None:
    text = moe_64.tok_decode(moe_64.tok_encode(PAGE)[:64])
    assert len(moe_64.tok_encode(text)) == 64
    requests = requests_of("loglikelihood", ("", text))
    assert_same(moe_64.loglikelihood(requests), hf_64.loglikelihood(requests))


def test_continuation_longer_than_the_window_is_refused(moe_64: MoeLM, requests_of: Any) -> None:
    with pytest.raises(UsageError, match="window of 64"):
        moe_64.loglikelihood(requests_of("loglikelihood", ("The sun", PAGE)))


def test_rolling_equals_hf_on_pages_around_the_window_s_length(hf_64: HFLM, moe_64: MoeLM, requests_of: Any) -> None:
    ids = moe_64.tok_encode(PAGE)
    assert len(ids) > 4 * 64
    texts = [moe_64.tok_decode(ids[:length]) for length in (1, 2, 63, 64, 65, 127, 128, 129, len(ids))]
    requests = requests_of("loglikelihood_rolling", *((text,) for text in [*texts, "東京 🙂 naïve\r\n" * 20]))
    assert moe_64.loglikelihood_rolling(requests) == pytest.approx(hf_64.loglikelihood_rolling(requests), rel=1e-4)


def test_rolling_gives_an_empty_document_zero_as_hf_does(hf_64: HFLM, moe_64: MoeLM, requests_of: Any) -> None:
    requests = requests_of("loglikelihood_rolling", ("",), (SENTENCE,), ("",))
    answers, of_hf = moe_64.loglikelihood_rolling(requests), hf_64.loglikelihood_rolling(requests)
    assert (answers[0], answers[2]) == (of_hf[0], of_hf[2]) == (0, 0)
    assert answers[1] == pytest.approx(of_hf[1], rel=1e-4)


@pytest.fixture(scope="module")
def small_workload(hf_64: HFLM, requests_of: Any) -> tuple[Any, Any]:
    """Requests of every type, and what `hf` answers to them."""
    arguments = {"until": ["."], "max_gen_toks": 6}
    by_kind = {
        "loglikelihood": requests_of("loglikelihood", *((SENTENCE, choice) for choice in CHOICES[3:]), ("", " a")),
        "loglikelihood_rolling": requests_of("loglikelihood_rolling", (PAGE[:400],), ("The sun rises .",)),
        "generate_until": requests_of("generate_until", (SENTENCE, arguments), ("The sun", arguments)),
    }
    return by_kind, {kind: getattr(hf_64, kind)(requests) for kind, requests in by_kind.items()}


@pytest.mark.parametrize("batch_size", [1, 4, "4", "auto", "auto:4"])
def test_batch_size_changes_no_answer(
    moe_like: Callable[..., MoeLM], small_workload: tuple[Any, Any], batch_size: int | str
) -> None:
    by_kind, of_hf = small_workload
    model = moe_like(batch_size=batch_size, max_length=64)
    answers = {kind: getattr(model, kind)(requests) for kind, requests in by_kind.items()}
    assert_same(answers["loglikelihood"], of_hf["loglikelihood"])
    assert answers["loglikelihood_rolling"] == pytest.approx(of_hf["loglikelihood_rolling"], rel=1e-4)
    assert answers["generate_until"] == of_hf["generate_until"]


@pytest.mark.parametrize("batch_size", ["0", "x", 0, -1, "1.5"])
def test_batch_size_that_makes_no_sense_is_refused(moe_like: Callable[..., MoeLM], batch_size: int | str) -> None:
    with pytest.raises(UsageError, match=f"batch_size={batch_size}"):
        moe_like(batch_size=batch_size)


def test_unknown_model_argument_is_refused_by_name(moe_like: Callable[..., MoeLM]) -> None:
    with pytest.raises(UsageError, match="max_lenght"):
        moe_like(max_lenght=64)


def test_checkpoint_below_the_home_directory_is_loaded(
    moe_like: Callable[..., MoeLM], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "model").symlink_to(SHIPPED)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert moe_like(pretrained="~/model").max_length == 1024


def test_model_info_labels_the_arm_in_json(moe_64: MoeLM) -> None:
    info = json.loads(json.dumps(moe_64.get_model_info()))
    import transformers

    labels = info["moe_eval"]
    assert info["model_dtype"] == "float32"
    assert labels["engine"]["name"] == "transformers"
    assert labels["engine"]["version"] == transformers.__version__
    assert labels["engine"]["precision"] == "fp32"
    assert labels["engine"]["max_length"] == 64
    assert labels["prefix_token_id"] == 0
    assert labels["add_bos_token"] is None
    assert labels["notes"] == []


def test_model_info_says_that_the_shipped_model_stood_in(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        model = MoeLM(track=False)
    assert model.get_model_info()["moe_eval"]["notes"] == [SHIPPED_NOTE]
    assert SHIPPED_NOTE in caplog.text
