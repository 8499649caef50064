"""Windows that share a context against Transformers itself, one whole sequence at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from moe_eval.data.window import Window
from moe_eval.engines.transformers import shared_context
from moe_eval.engines.transformers.engine import TransformersEngine
from tests.engines.conftest import FAMILIES, VOCABULARY, check

Start = Callable[..., TransformersEngine]
Oracle = Callable[[Path, Window], Tensor]


def questions(*sizes: tuple[int, Sequence[int]], seed: int = 0) -> list[Window]:
    """Windows of random tokens: for every context's length the lengths of its continuations."""
    drawn = np.random.default_rng(seed)
    windows = []
    for length, continuations in sizes:
        context = tuple(drawn.integers(0, VOCABULARY, length).tolist())
        windows += [Window(context, tuple(drawn.integers(0, VOCABULARY, size).tolist())) for size in continuations]
    return windows


# longer and shorter than the sliding window of 16, up to the last position, and a long choice beside short ones
MIXED = questions(
    (40, (3, 5, 2, 4)), (9, (1, 2, 3)), (60, (2, 5)), (25, (1, 1, 7)), (12, (6,)), (1, (4, 4)), (40, (2, 2))
)
MIXED += [Window(MIXED[0].context, MIXED[0].continuation), *questions((30, (2, 33)))]


@contextmanager
def counted(engine: TransformersEngine) -> Iterator[list[int]]:
    """The tokens, with padding, of every pass inside."""
    tokens: list[int] = []
    layer = engine.model.get_input_embeddings()
    hook = layer.register_forward_hook(lambda _module, args, _out: tokens.append(args[0].numel()))
    try:
        yield tokens
    finally:
        hook.remove()


def test_every_family_scores_shared_contexts_as_whole_windows(family: Path, start: Start, oracle: Oracle) -> None:
    engine = start(family)
    check(partial(oracle, family), MIXED, engine.score(MIXED))
    assert shared_context.continues(engine.model)


@pytest.mark.parametrize("bounds", [{"batch_size": 1}, {"batch_size": 3}, {"options": {"max_tokens_per_batch": 70}}])
def test_scores_and_requested_tokens_do_not_depend_on_batches(
    mixtral: Path, start: Start, oracle: Oracle, bounds: dict[str, Any]
) -> None:
    ids = [np.arange(3 * len(window.continuation)).reshape(-1, 3) % VOCABULARY for window in MIXED]
    finished: dict[int, Any] = {}
    scores = start(mixtral, **bounds).score(MIXED, 2, finished.__setitem__, ids)
    check(partial(oracle, mixtral), MIXED, scores)
    assert [finished[index] for index in range(len(MIXED))] == scores
    for window, of_window, result in zip(MIXED, ids, scores, strict=True):
        expected = oracle(mixtral, window)
        np.testing.assert_allclose(result.of_ids, expected.gather(1, torch.from_numpy(of_window)), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(result.top_logprobs, expected.topk(2).values, rtol=1e-4, atol=1e-4)


def test_a_context_is_read_once(llama: Path, start: Start) -> None:
    engine = start(llama)
    windows = questions((40, (3, 3, 3, 3)), (40, (3, 3, 3, 3)), (40, (1, 1)))
    engine.score(windows)  # tries whether the model continues
    with counted(engine) as tokens:
        engine.score(windows)
    assert sorted(tokens) == [2 * 4 * 2, 40, 2 * 40]


def test_the_choices_of_a_batch_of_questions_are_read_in_one_pass(llama: Path, start: Start) -> None:
    engine = start(llama, batch_size=2)
    windows = questions(*[(40, (3, 3, 3, 3))] * 4)
    engine.score(windows)  # tries whether the model continues
    with counted(engine) as tokens:
        engine.score(windows)
    assert tokens == [2 * 40, 2 * 4 * 2] * 2


def test_what_would_save_little_is_read_whole() -> None:
    windows = questions((1, (30, 30, 30)), (8, (40, 40)), (20, (1, 1)), (20, (4,)), (30, (4, 4)))
    assert shared_context.split(windows) == ([[8, 9]], [*range(8)])


def test_a_model_with_a_recurrent_state_reads_whole_windows(start: Start, oracle: Oracle, tmp_path: Path) -> None:
    sizes = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8}
    config = transformers.Qwen3NextConfig(
        **{**FAMILIES["qwen3_moe"]().to_diff_dict(), "model_type": "qwen3_next", **sizes, "linear_value_head_dim": 8},
        shared_expert_intermediate_size=24,
        layer_types=["linear_attention", "full_attention"],
    )
    with torch.random.fork_rng():
        torch.manual_seed(7)
        transformers.AutoModelForCausalLM.from_config(config).float().save_pretrained(tmp_path)
    engine = start(tmp_path)
    assert not shared_context.continues(engine.model)
    check(partial(oracle, tmp_path), MIXED, engine.score(MIXED))


def test_a_model_that_ignores_positions_reads_whole_windows(
    checkpoint_of: Callable[[str], Path], start: Start, oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(checkpoint_of("gpt2"))  # its positions are absolute
    body = engine.model.transformer
    forward = body.forward
    monkeypatch.setattr(body, "forward", lambda position_ids=None, **arguments: forward(**arguments))
    assert not shared_context.continues(engine.model)
    check(partial(oracle, checkpoint_of("gpt2")), MIXED, engine.score(MIXED))


def test_contexts_that_do_not_fit_into_memory_are_read_whole(
    llama: Path, start: Start, oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(llama)

    def scarce(*_: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    assert engine._scoring.continues
    monkeypatch.setattr(shared_context, "hidden", scarce)
    check(partial(oracle, llama), MIXED, engine.score(MIXED))
