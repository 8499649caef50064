"""Engines on the double of vLLM, and Transformers as the oracle of what they say."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import transformers

from moe_eval.engines import registry
from moe_eval.engines.base import EngineSettings
from moe_eval.engines.transformers.engine import TransformersEngine
from moe_eval.engines.vllm.engine import VllmEngine
from tests.conftest import SHIPPED
from tests.engines.conftest import on_path

DOUBLE = Path(__file__).resolve().parents[2] / "contract" / "doubles" / "vllm_0_22"
VARIABLES = ("VLLM_DOUBLE", "VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_LOGGING_STREAM", "TRITON_CACHE_DIR")
Load = Callable[..., VllmEngine]


def _forget() -> None:
    for name in list(sys.modules):
        if name.split(".")[0] == "vllm":
            del sys.modules[name]


def installed() -> AbstractContextManager[None]:
    """The double on the path for as long as loading takes."""
    return on_path(DOUBLE, _forget, VARIABLES)


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> None:
    transformers.utils.logging.disable_progress_bar()


def started(tokenizer: Any, folder: Path | str = SHIPPED, **given: Any) -> VllmEngine:
    engine = registry.load("vllm", EngineSettings(str(folder), **{"dtype": "float32", **given}), tokenizer)
    assert isinstance(engine, VllmEngine)
    return engine


@pytest.fixture(scope="session")
def engine(tokenizer: Any) -> Iterator[VllmEngine]:
    """The shipped model with nothing set, one for all tests."""
    with installed():
        loaded = started(tokenizer)
    yield loaded
    loaded.close()


@pytest.fixture
def load(tokenizer: Any) -> Iterator[Load]:
    """Load an engine of this test's own."""
    loaded: list[VllmEngine] = []

    def make(folder: Path | str = SHIPPED, **given: Any) -> VllmEngine:
        loaded.append(started(tokenizer, folder, **given))
        return loaded[-1]

    with installed():
        yield make
        for each in loaded:
            each.close()


@pytest.fixture(scope="session")
def reference(tokenizer: Any) -> TransformersEngine:
    found = registry.load("transformers", EngineSettings(str(SHIPPED), dtype="float32"), tokenizer)
    assert isinstance(found, TransformersEngine)
    return found
