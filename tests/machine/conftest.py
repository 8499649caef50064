"""Installs the stand-in for pynvml."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from tests.doubles.nvml import Card, Fake


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Fake]:
    def install(*cards: Card) -> Fake:
        library = Fake(list(cards))
        monkeypatch.setitem(sys.modules, "pynvml", library)
        return library

    return install
