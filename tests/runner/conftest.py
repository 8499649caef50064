"""Made-up arms in place of processes."""

from __future__ import annotations

import pytest

from tests.doubles import plays
from tests.doubles.arm_process import Stage


@pytest.fixture(autouse=True)
def _undrawn(undrawn: None) -> None:
    """What a chart shows is no matter of this room."""


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    return plays.set_up(monkeypatch)
