"""The prompts of a speed comparison: the text's own tokens, or numbers from a seed, the same every time."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
from transformers import AutoTokenizer

from moe_eval.data import documents, prompts
from moe_eval.data.workload import Workload, shapes
from moe_eval.errors import UsageError
from tests.conftest import SHIPPED

VOCABULARY = 4096


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(str(SHIPPED))


def sampled(tokenizer: Any, dataset: str = "moe_sample", seed: int = 0, vocabulary: int = VOCABULARY) -> Workload:
    return prompts.make_workload(dataset, seed, shapes([1, 4], 32, 8), tokenizer, vocabulary)


def test_prompts_of_the_sample_are_its_first_tokens_as_the_tasks_read_it(tokenizer: Any) -> None:
    from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer

    pages = documents.moe_sample()["test"]["page"]
    work = sampled(tokenizer)
    stream = chain.from_iterable(
        tokenizer(wikitext_detokenizer({"page": page}), add_special_tokens=False)["input_ids"] for page in pages
    )
    assert list(chain.from_iterable(work.pool)) == [token for token, _ in zip(stream, range(4 * 32), strict=False)]
    assert [len(prompt) for prompt in work.pool] == [32] * 4
    assert "moe_sample" in work.source


class WithBos:
    """A tokenizer that puts a token before every text unless it is told not to."""

    name_or_path = "with BOS"

    def encode(self, text: str, add_special_tokens: bool = True, **_: Any) -> list[int]:
        return [0] * add_special_tokens + [1 + byte % 100 for byte in text.encode()]


def test_prompts_of_text_hold_no_special_token() -> None:
    pool = prompts.make_workload("moe_sample", 0, shapes([999], 32, 8), WithBos(), VOCABULARY).pool
    assert 0 not in set(chain.from_iterable(pool)), "nor at the start of an article"


@pytest.mark.parametrize("dataset", ["moe_sample", "random"])
def test_the_same_inputs_make_the_same_prompts_and_digest(tokenizer: Any, dataset: str) -> None:
    first = sampled(tokenizer, dataset)
    again = sampled(AutoTokenizer.from_pretrained(str(SHIPPED)), dataset)
    assert (first.pool, first.digest) == (again.pool, again.digest)
    assert len(set(first.pool)) == 4


def test_random_prompts_follow_the_seed_and_draw_no_special_token(tokenizer: Any) -> None:
    first, second = sampled(tokenizer, "random", 1), sampled(tokenizer, "random", 2)
    assert first.digest != second.digest
    assert first.source == "random, seed 1"
    special = set(tokenizer.all_special_ids)
    few = max(special) + 3
    drawn = set(chain.from_iterable(sampled(tokenizer, "random", 0, few).pool))
    assert special
    assert drawn == set(range(few)) - special


@pytest.mark.parametrize(
    ("dataset", "batch", "input_len", "vocabulary", "message"),
    [
        ("c4", 1, 8, VOCABULARY, "no data set 'c4'"),
        ("moe_sample", 1000, 512, VOCABULARY, "different prompts of 512 tokens and the largest batch needs 1000"),
        ("moe_sample", 1, 8, 5, "vocabulary has 5"),
    ],
)
def test_what_makes_no_prompts_is_refused(  # noqa: PLR0917
    tokenizer: Any, dataset: str, batch: int, input_len: int, vocabulary: int, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        prompts.make_workload(dataset, 0, shapes([batch], input_len, 8), tokenizer, vocabulary)
