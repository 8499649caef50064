"""The divergence by top tokens against that over the whole vocabulary, on the shipped model and arms of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import transformers

from moe_eval.checkpoint.shipped import SHIPPED
from moe_eval.data import scoring_windows
from moe_eval.data.scoring_windows import WindowSet
from moe_eval.engines import registry
from moe_eval.engines.base import Engine, EngineSettings, WindowScores
from moe_eval.evaluators import divergence
from moe_eval.evaluators.quality import TOP_K
from moe_eval.stats import Divergence

Array = npt.NDArray[Any]
Load = Callable[[str], Engine]


@pytest.fixture(scope="module")
def load() -> Load:
    tokenizer = transformers.AutoTokenizer.from_pretrained(SHIPPED)

    @cache
    def loaded(precision: str) -> Engine:
        options = {} if precision == "fp32" else {"emulate": "true", "calibration_windows": "2"}
        return registry.load(
            "transformers",
            EngineSettings(str(SHIPPED), dtype="float32", precision=precision, options=options),
            tokenizer,
        )

    return loaded


@pytest.fixture(scope="module")
def windows() -> WindowSet:
    tokenizer = transformers.AutoTokenizer.from_pretrained(SHIPPED)
    pages = scoring_windows.read_documents("moe_sample")
    return scoring_windows.cut(pages, lambda text: list(tokenizer.encode(text)), tokenizer.eos_token_id, 128, 7)


@pytest.fixture(scope="module")
def reference(load: Load, windows: WindowSet) -> Array:
    engine = load("fp32")
    return whole(engine.score(windows.windows, top_k=engine.facts.vocabulary))


def whole(scores: Sequence[WindowScores]) -> Array:
    """Log-probabilities of the whole vocabulary at every position."""
    logprobs = np.concatenate([window.top_logprobs for window in scores])
    everything = np.empty_like(logprobs)
    np.put_along_axis(everything, np.concatenate([window.top_ids for window in scores]), logprobs, axis=1)
    return everything


def full(reference: Array, arm: Array) -> float:
    before, after = reference.astype(np.float64), arm.astype(np.float64)
    return float((np.exp(before) * (before - after)).sum(axis=1).mean())


def by_top(reference: Array, arm: Array, *, scored: bool) -> Divergence:
    (ids, logprobs), others = top(reference), top(arm)
    of_ids = np.take_along_axis(arm, ids, axis=1) if scored else None
    return divergence.between(ids, logprobs, *others, documents=[len(ids)], of_reference_ids=of_ids)


def top(logprobs: Array) -> tuple[Array, Array]:
    ids = np.argsort(-logprobs, axis=1, kind="stable")[:, :TOP_K]
    return ids, np.take_along_axis(logprobs, ids, axis=1)


@pytest.mark.parametrize("precision", ["fp8", "nvfp4"])
def test_an_honest_arm_is_within_15_per_cent(load: Load, windows: WindowSet, reference: Array, precision: str) -> None:
    ids, logprobs = top(reference)
    of_windows = np.split(ids, np.cumsum([len(window.continuation) for window in windows.windows])[:-1])
    scores = load(precision).score(windows.windows, top_k=reference.shape[1], ids=of_windows)
    arm, of_ids = whole(scores), np.concatenate([window.of_ids for window in scores])
    expected = full(reference, arm)
    result = divergence.between(ids, logprobs, *top(arm), documents=[len(ids)], of_reference_ids=of_ids)
    assert 0.85 * expected < result.mean <= expected
    assert 0.7 * expected < by_top(reference, arm, scored=False).mean <= result.mean


@pytest.mark.parametrize("scored", [True, False])
@pytest.mark.parametrize("fault", ["uniform", "permuted", "off by one"])
def test_a_broken_head_is_far_away(reference: Array, fault: str, scored: bool) -> None:
    order = np.random.default_rng(0).permutation(reference.shape[1])
    arm = {
        "uniform": np.full_like(reference, -np.log(reference.shape[1])),
        "permuted": reference[:, order],
        "off by one": np.roll(reference, 1, axis=1),
    }[fault]
    result, expected = by_top(reference, arm, scored=scored), full(reference, arm)
    assert 3 < result.mean <= expected
    assert result.same_top1 < 0.01
    assert not scored or result.mean > 0.85 * expected
