"""The doubles of TensorRT-LLM, one version at a time."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

DOUBLES = Path(__file__).resolve().parent / "doubles"
VERSIONS = ("1.1.0", "1.2.0", "1.3.0rc8", "1.3.0rc20", "1.4.0rc1", "1.4.0rc4")
# those whose own form of prompt log-probabilities is right
ALIGNED = ("1.3.0rc20", "1.4.0rc1", "1.4.0rc4")
# what a test runs that names no version: one of each form
CORE = ("1.2.0", "1.3.0rc8", "1.4.0rc1")


def _forget() -> None:
    for name in list(sys.modules):
        if name.split(".")[0] in ("tensorrt_llm", "trtllm_double"):
            del sys.modules[name]


@pytest.fixture(scope="session", params=CORE)
def version(request: pytest.FixtureRequest) -> str:
    """A version of TensorRT-LLM."""
    return str(request.param)


@pytest.fixture(scope="session")
def double_path(version: str) -> Path:
    """The folder to put on the path for `import tensorrt_llm`."""
    return DOUBLES / f"v{version.replace('.', '_')}"


@pytest.fixture
def double(version: str, double_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Makes `import tensorrt_llm` find the version's double in this process; gives the version."""
    for name in ("TRTLLM_DOUBLE", "TRTLLM_DOUBLE_LOG", "TLLM_WORKER_USE_SINGLE_PROCESS"):
        monkeypatch.delenv(name, raising=False)
    path = list(sys.path)
    _forget()
    monkeypatch.syspath_prepend(str(double_path))
    yield version
    _forget()
    # the double adds the folder of what the doubles share
    sys.path[:] = path
