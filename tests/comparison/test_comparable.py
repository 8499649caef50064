"""Which records are of one run, so that drift cancels in their ratio."""

from __future__ import annotations

from typing import Any

import pytest

from moe_eval.comparison import comparable
from tests import recorded_arms as made

MS = {1: [[100.0, 101.0], [99.0, 100.0]]}


@pytest.mark.parametrize(
    ("changed", "one"),
    [
        ({}, True),
        ({"run_id": "f" * 32}, False),
        ({"run_id": None}, False),
        ({"asked": {"batch_size": "8"}}, False),
        ({"git": "another"}, False),
        ({"machine": {"gpus": []}}, False),
    ],
)
@pytest.mark.parametrize("kind", ["perf", "ppl"])
def test_one_run_is_one_start_of_a_command_on_one_machine(kind: str, changed: dict[str, Any], one: bool) -> None:
    a = made.perf("bf16", MS) if kind == "perf" else made.ppl("bf16", made.scores())
    b = made.perf("fp8", MS) if kind == "perf" else made.ppl("fp8", made.scores())
    if kind == "ppl":
        a["machine"] = b["machine"] = {"gpus": [made.GPU]}
    assert comparable.one_run(a, {**b, **changed}) is one
    assert comparable.one_run({**a, **changed}, b) is one


def test_records_that_name_no_run_are_of_none() -> None:
    a, b = ({key: each for key, each in made.perf(name, MS).items() if key != "run_id"} for name in ("bf16", "fp8"))
    assert not comparable.one_run(a, b)
    assert not comparable.one_run(a, None)
