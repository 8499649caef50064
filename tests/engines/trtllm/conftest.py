"""Engines on the doubles of TensorRT-LLM, and Transformers as the oracle of what they say."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from moe_eval.data.window import Window
from moe_eval.engines import registry
from moe_eval.engines.base import EngineSettings, WindowScores
from moe_eval.engines.trtllm.engine import TrtllmEngine
from moe_eval.machine import hardware
from tests.conftest import SHIPPED
from tests.contract.conftest import DOUBLES, VERSIONS, _forget, double, double_path, version

__all__ = ["double", "double_path", "version"]

Load = Callable[..., TrtllmEngine]
Distribution = Callable[[Window], Tensor]
VARIABLES = (
    "TRTLLM_DOUBLE",
    "TRTLLM_DOUBLE_LOG",
    "TLLM_WORKER_USE_SINGLE_PROCESS",
    "TRTLLM_QWEN3_EAGER_FUSION_DISABLED",
    "OMPI_COMM_WORLD_SIZE",
)
EVERY = pytest.mark.parametrize("version", VERSIONS, indirect=True, scope="session")
OLDEST = pytest.mark.parametrize("version", ["1.2.0"], indirect=True, scope="session")
NEWEST = pytest.mark.parametrize("version", ["1.4.0rc1"], indirect=True, scope="session")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def _own_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine sets variables of this process: undone after every test."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(SHIPPED)


def settings(folder: Path | str = SHIPPED, **given: Any) -> EngineSettings:
    return EngineSettings(checkpoint=str(folder), **{"dtype": "float32", **given})


def started(tokenizer: Any, folder: Path | str = SHIPPED, **given: Any) -> TrtllmEngine:
    engine = registry.load("trtllm", settings(folder, **given), tokenizer)
    assert isinstance(engine, TrtllmEngine)
    return engine


@contextmanager
def installed(name: str) -> Iterator[None]:
    """One double on the path for as long as loading takes; an engine goes on without it."""
    path, environment = list(sys.path), {name: os.environ.pop(name) for name in VARIABLES if name in os.environ}
    _forget()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOUBLES / f"v{name.replace('.', '_')}"))
        try:
            yield
        finally:
            _forget()
            sys.path[:] = path
            for each in VARIABLES:
                os.environ.pop(each, None)
            os.environ.update(environment)


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


@pytest.fixture(scope="session")
def plain_model() -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(SHIPPED, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def oracle(plain_model: Any) -> Distribution:
    """Log-probabilities (n, vocabulary) in float64 at a window's n scored positions: one pass, no batch, no cache."""

    @cache
    @torch.no_grad()
    def distribution(window: Window) -> Tensor:
        logits = plain_model(input_ids=torch.tensor([window.inputs])).logits[0]
        return torch.log_softmax(logits[-len(window.continuation) :].double(), dim=-1)

    return distribution


def check(oracle: Distribution, windows: Sequence[Window], found: Sequence[WindowScores]) -> None:
    assert len(found) == len(windows)
    for window, scores in zip(windows, found, strict=True):
        expected = oracle(window)
        targets = torch.tensor(window.continuation)
        assert scores.logprobs.dtype == np.float32
        logprobs = expected.gather(1, targets[:, None])[:, 0].numpy()
        np.testing.assert_allclose(scores.logprobs, logprobs, rtol=1e-4, atol=1e-4)
        assert scores.greedy.tolist() == (expected.argmax(1) == targets).tolist()


def window(seed: int, context: int, continuation: int) -> Window:
    """Random tokens of the shipped vocabulary."""
    drawn = torch.randint(0, 4096, (context + continuation,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Window(tuple(drawn[:context]), tuple(drawn[context:]))


LONGEST = 1022  # of the shipped model's 1,024 positions


@pytest.fixture(scope="session")
def windows(plain_model: Any) -> list[Window]:
    """Of many shapes, in no order: extremes, repeated ones, ones that share long beginnings, and a greedy one."""
    found = [window(1, 1, 1), window(2, 70, 1), window(3, 1, 70), window(4, LONGEST, 1), window(5, 9, 30)]
    shared = window(6, 200, 60)
    everything = shared.context + shared.continuation
    found += [shared, Window(everything[:100], everything[100:]), Window(everything[:-1], everything[-1:])]
    found += [Window(everything[:200], (7, 8)), Window(everything[:64], (1,)), shared, window(1, 1, 1)]
    made = plain_model.generate(torch.tensor([everything[:20]]), do_sample=False, max_new_tokens=8)[0].tolist()
    return [*found, Window(tuple(made[:20]), tuple(made[20:])), Window((5,), window(7, 1, LONGEST).continuation)]
