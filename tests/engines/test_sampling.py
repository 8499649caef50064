"""Generation arguments by name: what each engine takes, as which type, and within which bounds."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import transformers

from moe_eval.engines import registry, sampling
from moe_eval.engines.base import GenerationRequest
from moe_eval.errors import UsageError
from tests.contract.doubles.common.trtllm_double import sampling as trtllm_double
from tests.contract.doubles.common.trtllm_double.versions import VERSIONS


@pytest.mark.parametrize("engine", registry.ENGINES)
@pytest.mark.parametrize(
    ("values", "fields"),
    [
        ({"until": ["a", 5, ""], "stop": "b", "stop_strings": ["c"]}, {"stop": ["a", "5", "b", "c"]}),
        ({"max_tokens": 3, "max_gen_toks": "5"}, {"max_new_tokens": 5}),
        ({"max_completion_tokens": 1e1, "min_tokens": 2}, {"max_new_tokens": 10, "min_new_tokens": 2}),
        ({"top_k": -1, "seed": -1, "min_p": 0, "repetition_penalty": "1.0", "presence_penalty": 0}, {}),
        ({"n": 1, "best_of": 1, "num_beams": 1, "num_return_sequences": 1, "use_beam_search": "false"}, {}),
        ({"length_penalty": 2, "early_stopping": True, "use_cache": True, "temperature": None}, {}),
        ({"stop_token_ids": 7, "eos_token_id": [8]}, {"stop_tokens": [7, 8]}),
        ({"seed": 2**62, "skip_special_tokens": "false"}, {"seed": 2**62, "skip_special_tokens": False}),
        ({"do_sample": "true", "temperature": "0.5", "top_p": 1}, {"do_sample": True, "temperature": 0.5, "top_p": 1}),
    ],
    ids=repr,
)
def test_every_engine_takes_what_all_of_them_do(engine: str, values: dict[str, Any], fields: dict[str, Any]) -> None:
    assert sampling.read(values, engine) == (fields, {})


@pytest.mark.parametrize(
    ("engines", "values"),
    [
        ("trtllm vllm transformers", {"repetition_penalty": 1.2, "min_p": 0.05}),
        ("trtllm vllm", {"presence_penalty": -2.0, "frequency_penalty": 0.5}),
        ("trtllm transformers", {"no_repeat_ngram_size": 3}),
        ("vllm", {"bad_words": ["x"], "allowed_token_ids": [1, 2], "logit_bias": {5: -1.0}}),
        ("trtllm", {"bad": ["x"], "top_p_decay": 0.5}),
        ("transformers", {"typical_p": 0.9, "bad_words_ids": [[1, 2]], "suppress_tokens": [3]}),
    ],
)
def test_what_a_library_takes_by_its_own_name(engines: str, values: dict[str, Any]) -> None:
    for engine in registry.ENGINES:
        if engine in engines.split():
            assert sampling.read(values, engine) == ({}, values)
        else:
            with pytest.raises(UsageError, match=f"{registry.named(engine).title} has no generation argument"):
                sampling.read(values, engine)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"temperature": "hot"}, "temperature=hot does not suit. Give a number of at least 0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": float("inf")}, "temperature=inf"),
        ({"top_p": 0}, "Give a number above 0 and at most 1."),
        ({"top_p": True}, "top_p=True"),
        ({"top_k": -2}, "top_k=-2"),
        ({"top_k": 1.5}, "Give a whole number"),
        ({"max_gen_toks": 0}, "max_gen_toks=0"),
        ({"repetition_penalty": 0}, "Give a number above 0."),
        ({"presence_penalty": 2.1}, "presence_penalty=2.1"),
        ({"min_p": 1.1}, "min_p=1.1"),
        ({"seed": 2**63}, "seed="),
        ({"do_sample": "perhaps"}, "Give true or false."),
        ({"until": {"a": 1}}, "Give a text or a list of texts."),
        ({"stop_token_ids": [-1]}, "a token id"),
        ({"logit_bias": [1]}, "by token id"),
        ({"n": 2}, "n=2 cannot be set, because one completion of each prompt is evaluated"),
        ({"max_length": 99}, "max_gen_toks does not"),
        ({"repetition_penlty": 1}, "Did you mean repetition_penalty?"),
        ({"minP": 1}, "Did you mean min_p?"),
        ({"zzzz": 1}, "There is no generation argument zzzz. Leave it out."),
    ],
    ids=repr,
)
def test_what_makes_no_sense_is_refused_in_two_sentences(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as refused:
        sampling.read(values, "vllm")
    assert words in str(refused.value)


def test_names_are_those_of_the_libraries() -> None:
    rows = sampling.arguments()
    of_requests = set(inspect.signature(GenerationRequest).parameters) | {"do_sample", "skip_special_tokens"}
    assert {row.field for row in rows.values() if row.field} <= of_requests
    generation_config = transformers.GenerationConfig().to_dict()
    assert {name for name, row in rows.items() if "transformers" in row.engines} <= set(generation_config) | {"top_h"}
    oldest = trtllm_double.build(next(iter(VERSIONS.values())))
    assert {name for name, row in rows.items() if "trtllm" in row.engines} <= set(inspect.signature(oldest).parameters)
