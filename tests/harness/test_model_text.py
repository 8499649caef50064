"""How MoeLM turns text into tokens and chats into text, against the harness's own `hf` model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lm_eval.models.huggingface import HFLM

from moe_eval.checkpoint.shipped import SHIPPED
from moe_eval.errors import UsageError
from moe_eval.harness.model import MoeLM

TEXTS = ("The sun rises", " rises", "", "<s>The sun", "<|endoftext|>The sun", "東京 <s> naïve", "<s>")
CHAT = [{"role": "system", "content": "Be brief ."}, {"role": "user", "content": "What is a sundial ?"}]
Make = Callable[..., Any]


@pytest.mark.parametrize("policy", [None, True, False])
@pytest.mark.parametrize("special", [None, True, False])
def test_tok_encode_equals_hf(
    hf_like: Make, moe_like: Make, bos_tokenizer: Path, policy: bool | None, special: bool | None
) -> None:
    oracle: HFLM = hf_like(bos_tokenizer, add_bos_token=policy)
    adapter: MoeLM = moe_like(tokenizer=str(bos_tokenizer), add_bos_token=policy)
    assert [adapter.tok_encode(text, special) for text in TEXTS] == [oracle.tok_encode(text, special) for text in TEXTS]


def test_tok_encode_without_a_bos_token_equals_hf(hf: HFLM, moe: MoeLM) -> None:
    assert [moe.tok_encode(text) for text in TEXTS] == [hf.tok_encode(text) for text in TEXTS]
    assert moe.tok_decode(moe.tok_encode("<|endoftext|>The sun")) == "The sun"


@pytest.mark.parametrize("policy", [None, True, False])
def test_scores_with_a_bos_token_equal_hf(
    hf_like: Make, moe_like: Make, requests_of: Any, bos_tokenizer: Path, policy: bool | None
) -> None:
    oracle: HFLM = hf_like(bos_tokenizer, add_bos_token=policy)
    adapter: MoeLM = moe_like(tokenizer=str(bos_tokenizer), add_bos_token=policy)
    pairs = requests_of("loglikelihood", ("The sun", " rises"), ("", "The sun"), ("<s>The", " sun"))
    pages = requests_of("loglikelihood_rolling", ("A sundial tells the time .",), ("",))
    prompts = requests_of("generate_until", ("The sun", {"until": [], "max_gen_toks": 4}))
    assert [score for score, _ in adapter.loglikelihood(pairs)] == pytest.approx(
        [score for score, _ in oracle.loglikelihood(pairs)], rel=1e-4
    )
    assert adapter.loglikelihood_rolling(pages) == pytest.approx(oracle.loglikelihood_rolling(pages), rel=1e-4)
    assert adapter.generate_until(prompts) == oracle.generate_until(prompts)


def test_prefix_token_is_eos_without_bos_and_bos_with_it(
    hf: HFLM, moe: MoeLM, hf_like: Make, moe_like: Make, bos_tokenizer: Path
) -> None:
    assert moe.prefix_token_id == hf.prefix_token_id == moe.eot_token_id == 0
    with_bos = moe_like(tokenizer=str(bos_tokenizer))
    assert with_bos.prefix_token_id == hf_like(bos_tokenizer).prefix_token_id == 4095


def test_prefix_token_asked_for_wins_and_changes_the_scores_as_hf_s(
    moe: MoeLM, hf_like: Make, moe_like: Make, requests_of: Any, bos_tokenizer: Path
) -> None:
    for number in (0, 300):
        adapter = moe_like(prefix_token_id=number, tokenizer=str(bos_tokenizer))
        oracle = hf_like(bos_tokenizer, prefix_token_id=number)
        requests = requests_of("loglikelihood", ("", "The sun"))
        assert adapter.prefix_token_id == number
        assert adapter.get_model_info()["moe_eval"]["prefix_token_id"] == number
        assert adapter.loglikelihood(requests)[0][0] == pytest.approx(oracle.loglikelihood(requests)[0][0], rel=1e-4)


def test_prefix_token_that_the_model_does_not_have_is_refused(moe_like: Make) -> None:
    with pytest.raises(UsageError, match="prefix_token_id"):
        moe_like(prefix_token_id=999_999)


@pytest.mark.parametrize("generation_prompt", [True, False])
def test_chat_template_equals_hf(hf: HFLM, moe: MoeLM, generation_prompt: bool) -> None:
    text = moe.apply_chat_template(CHAT, add_generation_prompt=generation_prompt)
    assert text == hf.apply_chat_template(CHAT, add_generation_prompt=generation_prompt)
    assert "What is a sundial ?" in text
    assert moe.tokenizer_name == hf.tokenizer_name
    assert moe.chat_template(True) == hf.chat_template(True)


def _tokenizer(folder: Path, template: str | None) -> str:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(SHIPPED / name, folder)
    if template is not None:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    return str(folder)


def test_template_that_refuses_the_system_role_is_used_without_it_as_hf_does(
    hf_like: Make, moe_like: Make, tmp_path: Path
) -> None:
    tokenizer = _tokenizer(
        tmp_path,
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "[{{ m['content'] }}]{% endfor %}",
    )
    text = hf_like(tokenizer).apply_chat_template(CHAT)
    assert text == "[What is a sundial ?]"
    assert moe_like(tokenizer=tokenizer).apply_chat_template(CHAT) == text


@pytest.mark.parametrize(("enable_thinking", "text"), [(None, "unset"), (False, "no"), (True, "yes")])
def test_enable_thinking_reaches_the_template(
    hf_like: Make, moe_like: Make, tmp_path: Path, enable_thinking: bool | None, text: str
) -> None:
    template = "{% if enable_thinking is not defined %}unset{% elif enable_thinking %}yes{% else %}no{% endif %}"
    tokenizer, arguments = _tokenizer(tmp_path, template), {"enable_thinking": enable_thinking}
    end = {"think_end_token": "</think>"} if enable_thinking else {}
    assert moe_like(tokenizer=tokenizer, **arguments, **end).apply_chat_template(CHAT) == text
    assert hf_like(tokenizer, **arguments, **end).apply_chat_template(CHAT) == text


def test_tokenizer_without_a_chat_template_is_refused_in_one_sentence(moe_like: Make, tmp_path: Path) -> None:
    model = moe_like(tokenizer=_tokenizer(tmp_path, None))
    with pytest.raises(UsageError, match="--apply_chat_template"):
        model.apply_chat_template(CHAT)
