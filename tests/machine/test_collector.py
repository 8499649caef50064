"""Python's collector is left as it was."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import suppress

import pytest

from moe_eval.machine import collector


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    gc.enable()


@pytest.mark.parametrize("was_on", [True, False])
def test_it_pauses_inside_and_goes_on_as_before_also_after_an_error(was_on: bool) -> None:
    (gc.enable if was_on else gc.disable)()

    @collector.paused()
    def work(error: type[Exception] | None = None) -> bool:
        with collector.paused():
            pass
        if error:
            raise error
        return gc.isenabled()

    assert not work()
    assert gc.isenabled() == was_on
    with suppress(ValueError):
        work(ValueError)
    assert gc.isenabled() == was_on
