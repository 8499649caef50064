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
from moe_eval.machine.rates import Rates
from moe_eval.records.quality import QualityFigures
from moe_eval.runner import arm_tasks
from tests.doubles.table_engine import PAGES, PREFIX, Table, encode

TOKENIZER = SimpleNamespace(bos_token_id=PREFIX, encode=lambda text, verbose: encode(text))


@pytest.fixture(autouse=True)
def _pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring_windows, "read_documents", lambda dataset: PAGES)


def test_rates_of_a_gpu_are_measured_once_and_its_index_counts_from_the_run_s_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    devices: list[str] = []

    def measure(device: str) -> Rates:
        devices.append(device)
        return Rates(1e12 / len(devices), {}, "H100")

    monkeypatch.setattr(arm_tasks, "measure_rates", measure)
    monkeypatch.setattr(arm_tasks.links, "slowest", lambda gpus, count: 1e9 * sum(gpus) if count == 2 else "no link")
    groups = [([0], []), ([1, 2], [2]), ([0, 1, 2, 3], [2, 4])]
    alone, pair, whole = arm_tasks.rates(None, None, device="cuda:4", groups=groups)
    assert devices == ["cuda:4", "cuda:5", "cuda:6", "cuda:7"]
    assert (alone.gpus, alone.copy_bytes_per_s, alone.link_bytes_per_s) == ((0,), 1e12, {})
    assert (pair.gpus, pair.copy_bytes_per_s, pair.link_bytes_per_s) == ((1, 2), 1e12 / 3, {2: 11e9})
    assert (whole.gpus, whole.link_bytes_per_s, whole.no_links) == ((0, 1, 2, 3), {2: 22e9}, "no link")
    assert arm_tasks.rates(None, None, device="cpu")[0].gpus == ()


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
