"""Made-up arms in place of processes."""

from __future__ import annotations

import pytest

from tests.doubles import plays
from tests.doubles.arm_process import Stage


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    return plays.set_up(monkeypatch)
