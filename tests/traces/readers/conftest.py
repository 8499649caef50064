"""A database of Nsight Systems, a reader of made-up events, and what it means that two traces say the same."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from moe_eval.traces.kernel_table import Trace
from moe_eval.traces.readers import torch_profiler
from tests.doubles import nsys_database
from tests.doubles.chrome_trace import save

Reader = Callable[..., Trace]


@pytest.fixture(scope="session")
def usual_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("nsys") / "made.sqlite"
    nsys_database.write(path)
    return path


@pytest.fixture
def made(usual_database: Path, tmp_path: Path) -> Path:
    """A database that the test may change."""
    return Path(shutil.copy(usual_database, tmp_path))


@pytest.fixture
def read(tmp_path: Path) -> Reader:
    return lambda events, cpu=False, **facts: torch_profiler.read(save(tmp_path / "a.json", events, **facts), cpu=cpu)


def assert_same(first: Trace, second: Trace) -> None:
    """The same, whatever the order of their names."""
    assert (first.source, first.notes, first.timed) == (second.source, second.notes, second.timed)
    for rows, others in ((first.kernels, second.kernels), (first.ranges, second.ranges)):
        assert [rows.names[name] for name in rows.name] == [others.names[name] for name in others.name]
        for column in set(rows.__dataclass_fields__) - {"names", "name"}:
            assert np.array_equal(getattr(rows, column), getattr(others, column)), column
