"""generate_until against the harness's own `hf` model, greedy, on the same float32 weights."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lm_eval.models.huggingface import HFLM

from moe_eval.data.documents import SAMPLE
from moe_eval.errors import UsageError
from moe_eval.harness.model import MoeLM

PROMPTS = (
    "A sundial tells the time of day from the place where a shadow",
    "The sun",
    "On most garden dials the working edge , called the style , lies parallel to the axis of the Earth . In the",
    "Zürich — 東京 is",
)
PAGE = SAMPLE.read_text(encoding="utf-8")[:600]


def test_stop_text_and_what_follows_are_not_in_the_answer(moe: MoeLM, requests_of: Any) -> None:
    prompts = [(PROMPTS[0], {"until": until, "max_gen_toks": 16}) for until in ([], [" the"])]
    whole, cut = moe.generate_until(requests_of("generate_until", *prompts))
    assert " the" in whole
    assert cut == whole.partition(" the")[0]


def test_requests_of_two_kinds_in_one_call_keep_their_order(hf: HFLM, moe: MoeLM, requests_of: Any) -> None:
    short, long = {"until": ["."], "max_gen_toks": 3}, {"until": ["\n"], "max_gen_toks": 9}
    prompts = [(prompt, arguments) for prompt in PROMPTS for arguments in (short, long)]
    texts = moe.generate_until(requests_of("generate_until", *prompts))
    alone = [moe.generate_until(requests_of("generate_until", pair))[0] for pair in prompts]
    assert texts == alone == hf.generate_until(requests_of("generate_until", *prompts))
    assert len(set(texts)) == len(prompts)


def test_model_argument_max_gen_toks_counts_where_the_task_says_nothing(
    hf: HFLM, moe_like: Callable[..., MoeLM], requests_of: Any
) -> None:
    texts = moe_like(max_gen_toks=4).generate_until(requests_of("generate_until", (PROMPTS[0], {"until": []})))
    assert texts == hf.generate_until(requests_of("generate_until", (PROMPTS[0], {"until": [], "max_gen_toks": 4})))


def test_prompt_longer_than_the_window_is_cut_on_the_left_as_hf_does(
    hf_like: Callable[..., HFLM], moe_like: Callable[..., MoeLM], requests_of: Any, caplog: pytest.LogCaptureFixture
) -> None:
    requests = requests_of("generate_until", (PAGE, {"until": [], "max_gen_toks": 8}))
    with caplog.at_level(logging.WARNING):
        texts = moe_like(max_length=64).generate_until(requests)
    [warning] = [row.getMessage() for row in caplog.records if row.name == "lm_eval.moe_eval"]
    assert "to 56" in warning
    assert texts == hf_like(max_length=64).generate_until(requests)


def test_sampling_follows_the_seed(moe: MoeLM, requests_of: Any) -> None:
    requests = requests_of("generate_until", (PROMPTS[1], {"until": [], "max_gen_toks": 12, "do_sample": True}))

    def sample(seed: int) -> list[str]:
        torch.manual_seed(seed)
        return moe.generate_until(requests)

    assert sample(1) == sample(1)
    assert len({sample(seed)[0] for seed in range(4)}) > 1


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}])
def test_sampling_arguments_reach_the_engine(moe: MoeLM, requests_of: Any, narrow: dict[str, float]) -> None:
    """Each of them, this small, leaves the most probable token alone."""
    sampled = {"until": [], "max_gen_toks": 8, "do_sample": True, **narrow}
    greedy = {"until": [], "max_gen_toks": 8}
    texts = moe.generate_until(requests_of("generate_until", (PROMPTS[0], sampled), (PROMPTS[0], greedy)))
    assert texts[0] == texts[1]


def test_temperature_alone_asks_for_sampling(moe: MoeLM, requests_of: Any) -> None:
    requests = requests_of("generate_until", (PROMPTS[1], {"until": [], "max_gen_toks": 12, "temperature": 1.5}))
    assert len({moe.generate_until(requests)[0] for _ in range(4)}) > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_tokenz": 3}, "Did you mean min_tokens"),
        ({"num_beams": 4}, "num_beams=4 cannot be set"),
        ({"min_tokens": 9, "max_gen_toks": 8}, "min_new_tokens=9 is more than the 8"),
        ({"max_gen_toks": 0}, "max_gen_toks"),
        ({"max_gen_toks": "many"}, "number"),
        ({"temperature": "hot"}, "number"),
        ({"temperature": -1}, "temperature"),
        ({"max_gen_toks": 1024}, "window of 1024"),
    ],
)
def test_generation_argument_that_makes_no_sense_is_refused(
    moe: MoeLM, requests_of: Any, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        moe.generate_until(requests_of("generate_until", ("The sun", arguments)))
