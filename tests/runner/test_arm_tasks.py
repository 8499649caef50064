"""What an arm's process does to score: its arrays, on whose tokens, and scores that are no numbers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from moe_eval.data import scoring_windows
from moe_eval.errors import EngineError
from moe_eval.evaluators.quality import Scores
from moe_eval.records.quality import QualityFigures
from moe_eval.runner import arm_tasks
from tests.doubles.table_engine import PAGES, PREFIX, Table, encode

TOKENIZER = SimpleNamespace(bos_token_id=PREFIX, encode=lambda text, verbose: encode(text))


@pytest.fixture(autouse=True)
def _pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring_windows, "read_documents", lambda dataset: PAGES)


def score(table: Table, arrays: Path, **arguments: Any) -> QualityFigures:
    table.facts.precision, table.facts.name = "fp8", "table"
    engine: Any = table
    settings = {"dataset": "pages", "input_len": 16, "num_chunks": 0, **arguments}
    return arm_tasks.quality(engine, TOKENIZER, arrays=str(arrays), **settings)


def test_the_tokens_of_the_reference_are_scored_from_its_file(tmp_path: Path) -> None:
    first, second = tmp_path / "first.npz", tmp_path / "second.npz"
    score(Table(), first)
    assert score(Table(0.5), second, reference=str(first)).tokens == len(Scores.load(second).logprobs)
    assert Scores.load(first).reference_digest == ""
    assert Scores.load(second).reference_digest == Scores.load(first).ids_digest


def test_an_arm_whose_scores_are_no_numbers_fails_and_leaves_them(tmp_path: Path) -> None:
    table = Table()
    table.rows[encode("c")] = np.nan
    with pytest.raises(EngineError, match=r"are no numbers .* The first is token \d+ of window \d+ in document 0"):
        score(table, tmp_path / "arm.npz")
    assert np.isnan(Scores.load(tmp_path / "arm.npz").logprobs).any()
