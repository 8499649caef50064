"""Which records are of one run, so that drift cancels in their ratio, and which software has to be the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from moe_eval.comparison import comparable
from tests.doubles import recorded_arms as made
from tests.doubles.recorded_arms import pair

MS = {1: [[100.0, 101.0], [99.0, 100.0]]}


@pytest.mark.parametrize(
    ("change", "is_one"),
    [
        ({}, True),
        ({"run_id": "f" * 32}, False),
        ({"run_id": None}, False),
        ({"options": {"batch_size": "8"}}, False),
        ({"git": "another"}, False),
        ({"machine": made.machine("NVIDIA H200")}, False),
    ],
)
@pytest.mark.parametrize("kind", ["latency", "quality"])
def test_one_run_is_one_start_of_a_command_on_one_machine(kind: str, change: dict[str, Any], is_one: bool) -> None:
    records = [made.latency(name, MS) if kind == "latency" else made.quality(name, made.scores()) for name in "ab"]
    changed = [replace(record, origin=replace(record.origin, **change)) for record in records]
    assert comparable.is_one_run(records[0], changed[1]) is is_one
    assert comparable.is_one_run(changed[0], records[1]) is is_one


def test_another_schedule_is_another_run_and_records_that_name_no_run_are_of_none() -> None:
    assert not comparable.is_one_run(made.latency("bf16", MS), made.latency("fp8", MS, mode="alternating"))
    nameless = [made.latency(name, MS, run_id=None) for name in ("bf16", "fp8")]
    assert not comparable.is_one_run(*nameless)
    assert not comparable.is_one_run(nameless[0], None)


@pytest.mark.parametrize(
    ("software", "sentences"),
    [
        ({}, []),
        ({"driver": "590"}, ["Speed was measured with another driver (580 and 590)."]),
        ({"cuda": "13.1"}, ["Speed was measured with another CUDA (13.0 and 13.1)."]),
        ({"torch": "2.10"}, ["Speed was measured with another torch (2.9 and 2.10)."]),
        ({"torch": None, "driver": None}, []),  # what a record does not tell forbids nothing
        ({"driver": "590", "torch": "2.10"}, ["driver (580 and 590).", "torch (2.9 and 2.10)."]),
    ],
)
def test_another_driver_or_torch_forbids_to_compare_speed(software: dict[str, Any], sentences: list[str]) -> None:
    arms = []
    for name, changes in (("bf16", {}), ("fp8", software)):
        facts = {"driver": "580", "cuda": "13.0", "torch": "2.9", **changes}
        torch = facts.pop("torch")
        arm = made.arm(name, MS)
        assert arm.latency is not None
        versions = {"vllm": "0.22.1"} | ({"torch": torch} if torch else {})
        origin = replace(arm.latency.origin, machine=replace(made.machine(), **facts), versions=versions)
        arms.append(replace(arm, latency=replace(arm.latency, origin=origin)))
    differences = comparable.differences(*arms)
    assert len(differences) == len(sentences)
    for difference, sentence in zip(differences, sentences, strict=True):
        assert difference.endswith(sentence)
    assert comparable.differences(*(replace(arm, latency=None) for arm in arms)) == []
    assert pair(*arms).verdict == ("not comparable" if sentences else "quick look")
