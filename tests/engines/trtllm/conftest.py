"""Engines on the doubles of TensorRT-LLM, and Transformers as the oracle of what they say."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from moe_eval.data.window import Window
from moe_eval.engines import registry
from moe_eval.engines.base import EngineSettings
from moe_eval.engines.trtllm.engine import TrtllmEngine
from tests.conftest import SHIPPED
from tests.contract.conftest import CORE, DOUBLES, VERSIONS, _forget, double, double_path, version
from tests.engines.conftest import LONGEST, Distribution, on_path, window

__all__ = ["Distribution", "double", "double_path", "version"]

Load = Callable[..., TrtllmEngine]
VARIABLES = (
    "TRTLLM_DOUBLE",
    "TRTLLM_DOUBLE_LOG",
    "TLLM_WORKER_USE_SINGLE_PROCESS",
    "TRTLLM_QWEN3_EAGER_FUSION_DISABLED",
    "OMPI_COMM_WORLD_SIZE",
)
ALL = pytest.mark.parametrize("version", VERSIONS, indirect=True, scope="session")
EVERY = pytest.mark.parametrize("version", CORE, indirect=True, scope="session")
OLDEST = pytest.mark.parametrize("version", ["1.2.0"], indirect=True, scope="session")
NEWEST = pytest.mark.parametrize("version", ["1.4.0rc1"], indirect=True, scope="session")


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> None:
    transformers.utils.logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def _own_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine sets variables of this process: undone after every test."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def settings(folder: Path | str = SHIPPED, **given: Any) -> EngineSettings:
    return EngineSettings(checkpoint=str(folder), **{"dtype": "float32", **given})


def started(tokenizer: Any, folder: Path | str = SHIPPED, **given: Any) -> TrtllmEngine:
    engine = registry.load("trtllm", settings(folder, **given), tokenizer)
    assert isinstance(engine, TrtllmEngine)
    return engine


def installed(name: str) -> AbstractContextManager[None]:
    """One double on the path for as long as loading takes."""
    return on_path(DOUBLES / f"v{name.replace('.', '_')}", _forget, VARIABLES)


@pytest.fixture(scope="session")
def engine(version: str, tokenizer: Any) -> Iterator[TrtllmEngine]:
    """The shipped model with nothing set, one for all tests of a version."""
    with installed(version):
        loaded = started(tokenizer)
    yield loaded
    loaded.close()


@pytest.fixture
def load(double: str, tokenizer: Any) -> Iterator[Load]:
    """Load an engine of this test's own."""
    loaded: list[TrtllmEngine] = []

    def make(folder: Path | str = SHIPPED, **given: Any) -> TrtllmEngine:
        loaded.append(started(tokenizer, folder, **given))
        return loaded[-1]

    yield make
    for each in loaded:
        each.close()


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], list[dict[str, Any]]]:
    """What the double logged from here on, by the kind of event."""
    file = tmp_path / "events.jsonl"
    monkeypatch.setenv("TRTLLM_DOUBLE_LOG", str(file))

    def read(kind: str) -> list[dict[str, Any]]:
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        return [event for event in map(json.loads, lines) if event["event"] == kind]

    return read


@pytest.fixture(scope="session")
def oracle(oracle: Callable[[Path, Window], Tensor]) -> Distribution:
    """The shipped model's log-probabilities (n, vocabulary) at a window's n scored positions."""
    return cache(partial(oracle, SHIPPED))


@pytest.fixture(scope="session")
def windows(plain_model: Callable[[Path], Any]) -> list[Window]:
    """Of many shapes, in no order: extremes, repeated ones, ones that share long beginnings, and a greedy one."""
    found = [window(1, 1, 1), window(2, 70, 1), window(3, 1, 70), window(4, LONGEST, 1), window(5, 9, 30)]
    shared = window(6, 200, 60)
    everything = shared.context + shared.continuation
    found += [shared, Window(everything[:100], everything[100:]), Window(everything[:-1], everything[-1:])]
    found += [Window(everything[:200], (7, 8)), Window(everything[:64], (1,)), shared, window(1, 1, 1)]
    made = plain_model(SHIPPED).generate(torch.tensor([everything[:20]]), do_sample=False, max_new_tokens=8)[0].tolist()
    return [*found, Window(tuple(made[:20]), tuple(made[20:])), Window((5,), window(7, 1, LONGEST).continuation)]
