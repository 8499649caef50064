"""Engines on the double of vLLM, and Transformers as the oracle of what they say."""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from moe_eval.data.window import Window
from moe_eval.engines import registry
from moe_eval.engines.base import EngineSettings
from moe_eval.engines.transformers.engine import TransformersEngine
from moe_eval.engines.vllm.engine import VllmEngine
from moe_eval.machine import hardware
from tests.conftest import SHIPPED

DOUBLE = Path(__file__).resolve().parents[2] / "contract" / "doubles" / "vllm_0_22"
VARIABLES = ("VLLM_DOUBLE", "VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_LOGGING_STREAM")
LONGEST = 1022  # of the shipped model's 1,024 positions
Load = Callable[..., VllmEngine]


def _forget() -> None:
    for name in list(sys.modules):
        if name.split(".")[0] == "vllm":
            del sys.modules[name]


@contextmanager
def installed() -> Iterator[None]:
    """The double on the path for as long as loading takes; an engine goes on without it."""
    kept = {name: os.environ.pop(name) for name in VARIABLES if name in os.environ}
    _forget()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOUBLE))
        try:
            yield
        finally:
            _forget()
            for each in VARIABLES:
                os.environ.pop(each, None)
            os.environ.update(kept)


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> None:
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    gc.freeze()  # every engine that is closed collects what is left of it; what is imported is not


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(SHIPPED)


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


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the machine have these GPUs."""

    def have(*found: hardware.Gpu) -> None:
        monkeypatch.setattr(hardware, "gpus", lambda: found)

    return have


@pytest.fixture
def spoil(tmp_path: Path) -> Callable[..., Path]:
    """A copy of the shipped checkpoint, fields of config.json replaced and further JSON files beside it."""

    def copied(*, files: dict[str, Any] | None = None, **fields: Any) -> Path:
        folder = Path(shutil.copytree(SHIPPED, tmp_path / "checkpoint"))
        for name, content in {"config.json": fields, **(files or {})}.items():
            file = folder / name
            old = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
            file.write_text(json.dumps(old | content), encoding="utf-8")
        return folder

    return copied


def window(seed: int, context: int, continuation: int) -> Window:
    """Random tokens of the shipped vocabulary."""
    drawn = torch.randint(0, 4096, (context + continuation,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Window(tuple(drawn[:context]), tuple(drawn[context:]))
