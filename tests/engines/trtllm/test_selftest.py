"""What the self-test makes of installations that return log-probabilities wrongly."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from moe_eval.data.window import Window
from moe_eval.engines.trtllm import selftest
from moe_eval.engines.trtllm.readers import ContextLogits, PromptLogprobs
from moe_eval.errors import EngineError
from tests.engines.conftest import check, window
from tests.engines.trtllm.conftest import EVERY, NEWEST, Distribution, Load

CONTEXT = ContextLogits(torch.device("cpu"))


@NEWEST
@pytest.mark.parametrize("shift", [1, -1, 2])
def test_a_shifted_prompt_logprob_is_noticed_and_scores_stay_right(
    load: Load,
    oracle: Distribution,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    *,
    shift: int,
) -> None:
    monkeypatch.setenv("TRTLLM_DOUBLE", f"shift={shift}")
    engine = load()
    assert engine.facts.scores_from == "context_logits, checked against generation"
    (warning,) = [record.getMessage() for record in caplog.records if record.name.startswith("moe_eval")]
    assert warning.startswith("TensorRT-LLM 1.4.0rc1: ")
    assert "Scores are read from context logits" in warning
    some = [window(1, 30, 30)]
    check(oracle, some, engine.score(some))


@pytest.mark.parametrize("shift", [1, -1])
def test_shifted_context_logits_stop_the_engine(load: Load, monkeypatch: pytest.MonkeyPatch, shift: int) -> None:
    monkeypatch.setenv("TRTLLM_DOUBLE", f"shift_logits={shift}")
    with pytest.raises(EngineError, match=r"^The self-test failed, .* moe-eval doctor --selftest"):
        load()


@NEWEST
def test_without_ranks_the_runner_up_is_asked_for(
    load: Load, oracle: Distribution, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRTLLM_DOUBLE", "no_rank")
    engine = load()
    assert engine.facts.scores_from.startswith("prompt_logprobs=1, checked against context_logits")
    some = [window(1, 30, 30), window(2, 1, 40)]
    check(oracle, some, engine.score(some))


@NEWEST
@pytest.mark.parametrize("fault", ["bare_fails", "lose_at=12", "drop_at=12"])
def test_a_form_that_fails_only_as_a_run_sends_it_is_not_used(
    load: Load, oracle: Distribution, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Request 11 asks for both forms, and 12 for the engine's own alone."""
    monkeypatch.setenv("TRTLLM_DOUBLE", f"{fault}")
    engine = load(options={"stall_timeout": 1})
    (name, failed), *others = [(check.name, check.passed) for check in engine.checks[1:]]
    assert (name, failed) == ("prompt_logprobs=0 against context logits", False)
    assert [passed for _, passed in others] == [fault != "bare_fails"]
    form = "context_logits, checked" if fault == "bare_fails" else "prompt_logprobs=1, checked"
    assert engine.facts.scores_from.startswith(form)
    monkeypatch.delenv("TRTLLM_DOUBLE")
    some = [window(1, 30, 30)]
    check(oracle, some, engine.score(some))


@pytest.fixture
def weights(spoil: Callable[..., Path]) -> Callable[[float], Path]:
    """A copy whose embedding, which is the output layer as well, holds one value."""

    def filled(value: float) -> Path:
        folder = spoil()
        file = folder / "model.safetensors"
        tensors = load_file(file)
        tensors["model.embed_tokens.weight"].fill_(value)
        save_file(tensors, file, metadata={"format": "pt"})
        return folder

    return filled


@EVERY
def test_a_model_without_an_opinion_is_called_not_checkable(load: Load, weights: Callable[[float], Path]) -> None:
    engine = load(weights(0.0))
    assert engine.facts.scores_from == "context_logits, not checkable against generation"
    assert engine.checks[0].passed is None
    (scores,) = engine.score([Window((1, 2), (3, 4))])
    assert scores.logprobs.tolist() == pytest.approx([-math.log(4096)] * 2, abs=1e-4)


@NEWEST
def test_a_model_that_computes_no_numbers_is_stopped(load: Load, weights: Callable[[float], Path]) -> None:
    with pytest.raises(EngineError, match="self-test"):
        load(weights(math.nan))


def entry(**tokens: tuple[float, int | None]) -> dict[int, Any]:
    """`t5=(-0.5, 1)`: token 5 with its log-probability and rank."""
    return {int(name[1:]): SimpleNamespace(logprob=pair[0], rank=pair[1]) for name, pair in tokens.items()}


def answer(entries: list[Any] | None = None, logits: torch.Tensor | None = None) -> Any:
    return SimpleNamespace(outputs=[SimpleNamespace(prompt_logprobs=entries)], context_logits=logits)


def read(k: int, *entries: dict[int, Any]) -> tuple[list[float], list[bool]]:
    """Window (9) (5, 6): two entries count, and a last one about what is generated."""
    scores = PromptLogprobs(k).read(answer([*entries, entry(t1=(-9.0, 1))]), Window((9,), (5, 6)))
    return scores.logprobs.tolist(), scores.greedy.tolist()


def test_ranks_say_what_is_greedy() -> None:
    found = read(0, entry(t5=(-0.5, 1)), entry(t6=(-2.0, 7)))
    assert found == ([-0.5, -2.0], [True, False])


def test_without_ranks_the_other_tokens_say_what_is_greedy() -> None:
    found = read(1, entry(t5=(-0.5, None)), entry(t8=(-1.0, None), t6=(-2.0, None)))
    assert found == ([-0.5, -2.0], [True, False])


@pytest.mark.parametrize(
    ("k", "entries", "says"),
    [
        (0, [entry(t5=(-0.5, 1)), entry(t7=(-0.1, 1))], "lack token 6"),
        (0, [entry(t5=(-0.5, None)), entry(t6=(-0.1, None))], "state no rank and no other token"),
        (0, [entry(t5=(-0.5, 1))], "returned 2 log-probabilities for a prompt of 3"),
        (0, [entry(t5=(-0.5, 1))] * 3, "returned 4 log-probabilities for a prompt of 3"),
    ],
)
def test_prompt_logprobs_that_cannot_be_read(k: int, entries: list[Any], says: str) -> None:
    with pytest.raises(EngineError, match=says):
        read(k, *entries)


@pytest.mark.parametrize("entries", [None, []])
def test_prompt_logprobs_that_are_not_there(entries: list[Any] | None) -> None:
    with pytest.raises(EngineError, match="returned 0 log-probabilities"):
        PromptLogprobs(1).read(answer(entries), Window((9,), (5, 6)))


@pytest.mark.parametrize(
    ("logits", "says"),
    [
        (None, "no context logits"),
        (torch.zeros(2, 11), r"shape \(2, 11\) for a prompt of 3 tokens"),
        (torch.zeros(4, 11), r"shape \(4, 11\) for a prompt of 3 tokens"),
        (torch.zeros(11), r"shape \(11,\)"),
        (torch.zeros(3, 1, 11), r"shape \(3, 1, 11\)"),
    ],
)
def test_context_logits_that_cannot_be_read(logits: torch.Tensor | None, says: str) -> None:
    with pytest.raises(EngineError, match=says):
        CONTEXT.read(answer(logits=logits), Window((9, 8), (5, 6)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_context_logits_are_normalised_in_float32(dtype: torch.dtype) -> None:
    logits = torch.randn(600, 7000, generator=torch.Generator().manual_seed(1)).to(dtype)
    tokens = torch.randint(0, 7000, (601,), generator=torch.Generator().manual_seed(2)).tolist()
    scores = CONTEXT.read(answer(logits=logits), Window(tuple(tokens[:3]), tuple(tokens[3:])), top_k=2)
    expected = torch.log_softmax(logits[2:].double(), -1)
    torch.testing.assert_close(
        torch.from_numpy(scores.logprobs).double(),
        expected.gather(1, torch.tensor(tokens[3:])[:, None])[:, 0],
        rtol=1e-5,
        atol=1e-5,
    )
    assert scores.top_ids.shape == (598, 2)


def table_model(  # noqa: PLR0917 - what can be wrong with it
    seed: int, vocabulary: int, scale: float, shift: int = 0, shift_logits: int = 0, noise: float = 0.0
) -> Callable[[Sequence[Sequence[int]], dict[str, Any]], list[Any]]:
    """An installation whose next token depends on the last one alone; entries hold every token, so none is missing."""
    generator = torch.Generator().manual_seed(seed)
    table = scale * torch.randn(vocabulary, vocabulary, generator=generator)

    def ask(prompts: Sequence[Sequence[int]], _sampling: dict[str, Any]) -> list[Any]:
        outputs = []
        for prompt in prompts:
            rows = table[torch.tensor(list(prompt))]
            values = rows.log_softmax(-1) + noise
            ranks = (-values).argsort(-1).argsort(-1) + 1
            entries = [
                {token: SimpleNamespace(logprob=value, rank=rank) for token, (value, rank) in enumerate(pairs)}
                for pairs in (zip(row.tolist(), rank.tolist(), strict=True) for row, rank in zip(values, ranks))  # noqa: B905
            ]
            moved = [entries[(at + shift) % len(entries)] for at in range(len(entries))]
            made = SimpleNamespace(token_ids=[int(rows[-1].argmax())], prompt_logprobs=moved)
            outputs.append(SimpleNamespace(outputs=[made], context_logits=rows.roll(shift_logits, 0)))
        return outputs

    return ask


TABLES = {
    "seed": st.integers(0, 2**31),
    "vocabulary": st.integers(30, 60),
    "scale": st.floats(1.0, 8.0),
}
SHIFT = st.sampled_from([-2, -1, 1, 2])


def sequence(seed: int, vocabulary: int) -> list[int]:
    return torch.randint(0, vocabulary, (20,), generator=torch.Generator().manual_seed(seed + 1)).tolist()


@settings(max_examples=40)
@given(**TABLES)
def test_a_sound_installation_is_read_by_its_own_form(seed: int, vocabulary: int, scale: float) -> None:
    verdict = selftest.run(table_model(seed, vocabulary, scale), sequence(seed, vocabulary), CONTEXT)
    assert verdict.reader == PromptLogprobs(0)
    assert verdict.fallback is None


@settings(max_examples=40)
@given(**TABLES, shift=SHIFT)
def test_a_shifted_form_is_never_chosen(seed: int, vocabulary: int, scale: float, shift: int) -> None:
    verdict = selftest.run(table_model(seed, vocabulary, scale, shift), sequence(seed, vocabulary), CONTEXT)
    assert verdict.reader is CONTEXT
    assert verdict.fallback


@settings(max_examples=40)
@given(**TABLES, shift=SHIFT, both=st.booleans())
def test_shifted_context_logits_are_never_called_checked(
    seed: int, vocabulary: int, scale: float, shift: int, both: bool
) -> None:
    ask = table_model(seed, vocabulary, scale, -shift if both else 0, shift)
    with pytest.raises(EngineError, match="self-test failed"):
        selftest.run(ask, sequence(seed, vocabulary), CONTEXT)


@settings(max_examples=20)
@given(**TABLES, noise=st.floats(0.02, 1.0))
def test_a_form_that_is_off_by_a_little_is_not_chosen(seed: int, vocabulary: int, scale: float, noise: float) -> None:
    verdict = selftest.run(table_model(seed, vocabulary, scale, noise=noise), sequence(seed, vocabulary), CONTEXT)
    assert verdict.reader is CONTEXT


def test_a_known_sequence_is_long_enough_and_inside_the_vocabulary(tokenizer: Any) -> None:
    for found, vocabulary in (
        (selftest.known_sequence(tokenizer, 4096), 4096),
        (selftest.known_sequence(None, 50), 50),
    ):
        assert len(found) >= 16
        assert max(found) < vocabulary
    assert max(selftest.known_sequence(tokenizer, 40)) < 40, "a tokenizer of a larger vocabulary than the model's"
