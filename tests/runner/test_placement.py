"""Which GPUs loads run on, against what a GPU holds, and what their processes see."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moe_eval.engines.base import EngineSettings
from moe_eval.errors import UsageError
from moe_eval.machine.hardware import Gpu
from moe_eval.runner import fit, placement
from moe_eval.runner.arm_plan import Arm
from moe_eval.runner.fit import Need
from moe_eval.runner.request import ArmsRequest, NamedArm
from tests.conftest import SHIPPED
from tests.doubles import plays
from tests.doubles.arm_process import Stage

GPUS = tuple(Gpu("made up", "9.0", 80 << 30, f"GPU-{at}") for at in range(4))


def place(
    monkeypatch: pytest.MonkeyPatch, free: Sequence[int], arms: dict[str, tuple[int, int]], **changes: Any
) -> placement.Placement:
    """Arms by name, with the number of GPUs and what they need of each, in units of which GPUs have so many free."""
    sizes = {name: size for name, (_, size) in arms.items()}
    monkeypatch.setattr(fit, "free", lambda _: list(free))
    monkeypatch.setattr(fit, "need_of", lambda arm, *_: Need(sizes[arm.name], 0, 0))
    planned = [
        Arm(name, "bf16", EngineSettings("x", options={"tensor_parallel_size": count}), "vllm")
        for name, (count, _) in arms.items()
    ]
    return placement.place(planned, list(arms), (), GPUS[: len(free)], **changes)


@pytest.mark.parametrize(
    ("free", "arms", "rounds"),
    [
        # both fit on the first GPU, and share it: two GPUs of one kind differ
        ([9, 9], {"a": (1, 4), "b": (1, 4)}, [{"a": (0,), "b": (0,)}]),
        # they do not fit on one, so they change places
        ([9, 9], {"a": (1, 6), "b": (1, 6)}, [{"a": (0,), "b": (1,)}, {"a": (1,), "b": (0,)}]),
        # an arm of one GPU beside an arm of two
        ([9, 9, 9], {"a": (1, 6), "b": (2, 6)}, [{"a": (0,), "b": (1, 2)}, {"a": (2,), "b": (0, 1)}]),
        ([9, 9], {"a": (1, 6), "b": (2, 3)}, [{"a": (0,), "b": (0, 1)}]),
    ],
)
def test_arms_that_fit_at_once_take_turns_on_the_first_gpus_that_hold_them(
    monkeypatch: pytest.MonkeyPatch,
    free: list[int],
    arms: dict[str, tuple[int, int]],
    rounds: list[dict[str, tuple[int, ...]]],
) -> None:
    placed = place(monkeypatch, free, arms)
    assert placed.together
    assert list(placed.rounds) == rounds
    for load, places in enumerate([*rounds, *rounds]):
        assert {arm: placed.gpus(arm, load) for arm in arms} == places
    for special in (-1, -2):
        assert placed.gpus("a", special) == rounds[0]["a"]


@pytest.mark.parametrize(
    ("free", "arms", "places"),
    [
        ([9, 9], {"a": (1, 6), "b": (2, 6)}, {"a": (0,), "b": (0, 1)}),
        # the first GPU is in use by others, and both arms run on the one that holds the heavier
        ([5, 9], {"a": (1, 8), "b": (1, 4)}, {"a": (1,), "b": (1,)}),
        ([9], {"a": (1, 6), "b": (1, 6)}, {"a": (0,), "b": (0,)}),
        # the third arm of one GPU would never get the others' GPU
        ([9, 9], {"a": (1, 4), "b": (1, 4), "c": (1, 8)}, {"a": (0,), "b": (0,), "c": (0,)}),
    ],
)
def test_arms_that_do_not_fit_at_once_run_by_themselves_on_the_same_gpus(
    monkeypatch: pytest.MonkeyPatch,
    free: list[int],
    arms: dict[str, tuple[int, int]],
    places: dict[str, tuple[int, ...]],
) -> None:
    placed = place(monkeypatch, free, arms)
    assert not placed.together
    assert placed.rounds == (places,)


def test_no_two_arms_get_more_of_a_gpu_than_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    for first in range(1, 9):
        for second in range(1, 9):
            arms = {"a": (1, first), "b": (2, second), "c": (1, first)}
            placed = place(monkeypatch, [9, 9, 9], arms)
            for places in placed.rounds if placed.together else ():
                for gpu in range(3):
                    assert sum(size for name, (_, size) in arms.items() if gpu in places[name]) <= 9


def test_arms_of_unknown_need_or_that_take_a_share_are_kept_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not place(monkeypatch, [9, 9], {"a": (1, 1), "b": (1, 1)}, apart=True).together
    monkeypatch.setattr(fit, "takes_share", lambda arm: arm.name == "b")
    assert not place(monkeypatch, [9, 9], {"a": (1, 1), "b": (1, 1)}).together


@pytest.mark.parametrize(
    ("stated", "gpus", "first", "value"),
    [
        (None, (0,), 0, "0"),
        (None, (1, 2), 0, "1,2"),
        (None, (0,), 3, "3"),
        ("4,5,6", (1, 2), 0, "5,6"),
        (" GPU-ab, GPU-cd ", (1,), 0, "GPU-cd"),
        ("MIG-1,MIG-2", (0,), 1, "MIG-2"),
    ],
)
def test_a_user_s_own_choice_of_gpus_is_kept(
    monkeypatch: pytest.MonkeyPatch, stated: str | None, gpus: tuple[int, ...], first: int, value: str
) -> None:
    monkeypatch.delenv(placement.VISIBLE, raising=False)
    if stated is not None:
        monkeypatch.setenv(placement.VISIBLE, stated)
    assert placement.visible(gpus, first) == value


def named(folder: Path, **sizes: int) -> Any:
    """The request of a run of arms on so many GPUs."""
    base = plays.request(folder, evaluators=("latency",), loads=2)
    arms = [
        NamedArm(
            name,
            "transformers",
            str(SHIPPED),
            precision,
            options={"tensor_parallel_size": size},
            settings={"device": "cpu"},
            environment={"NCCL_ALGO": name},
        )
        for (name, size), precision in zip(sizes.items(), ("bf16", "fp32"), strict=True)
    ]
    arms_request = ArmsRequest("transformers", (), {}, settings={"device": "cpu"}, arms=arms)
    return replace(base, arms=arms_request)


def test_every_load_sees_the_gpus_of_its_arm_alone_and_meters_no_other(
    tmp_path: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(placement.VISIBLE, "7,6,5,4")
    run = plays.run_of(named(tmp_path / "run", one=1, two=2), GPUS)
    assert run.execute(plays.Quiet()) == []
    seen = {(request.arm, request.load.environment[placement.VISIBLE]) for request in stage.asked if request.load}
    assert seen == {("bf16", "7"), ("fp32", "7,6")}
    assert {request.load.environment["NCCL_ALGO"] for request in stage.asked if request.load} == {"one", "two"}
    metered = {(request.arm, *request.arguments["uuids"]) for request in stage.asked if request.task == "measure"}
    assert metered == {("bf16", "GPU-0"), ("fp32", "GPU-0", "GPU-1")}
    record = json.loads((tmp_path / "run" / "perf_two_sm90.json").read_text())
    settings = record["origin"]["arm"]
    assert settings["options"] == {"tensor_parallel_size": 2}
    assert (settings["gpus"], settings["environment"]) == ([0, 1], {"NCCL_ALGO": "two"})
    assert json.loads((tmp_path / "run" / "run.json").read_text())["arms"]["two"] == settings


def test_rates_are_of_the_gpus_that_an_arm_uses(tmp_path: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """GPU i copies 1 + i GB a second: see the double."""
    folder = tmp_path / "run"
    run = plays.run_of(named(folder, one=1, two=2), GPUS)
    rounds = ({"one": (0,), "two": (1, 2)}, {"one": (3,), "two": (1, 2)})
    run.plan = replace(run.plan, placement=placement.Placement(True, rounds))
    assert run.execute(plays.Quiet()) == []
    (request,) = [request for request in stage.asked if request.task == "rates"]
    assert request.arguments["groups"] == [[[0], []], [[3], []], [[1, 2], [2]]], "every group is measured once"
    rates = [json.loads((folder / f"perf_{arm}_sm90.json").read_text())["rates"] for arm in ("one", "two")]
    assert [(row["gpus"], row["copy_bytes_per_s"]) for row in rates] == [([0, 3], 1e9), ([1, 2], 2e9)]
    assert [row["link_bytes_per_s"] for row in rates] == [{}, {"2": 1e9}]


def test_a_run_until_decided_loads_both_gpus_at_once_and_ends_where_it_is_decided(
    tmp_path: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(placement.VISIBLE, raising=False)
    run = plays.run_of(replace(named(tmp_path / "run", one=1, two=1), loads=3, most_loads=8), GPUS[:2])
    rounds = ({"one": (0,), "two": (1,)}, {"one": (1,), "two": (0,)})
    run.plan = replace(run.plan, placement=placement.Placement(True, rounds))
    answers = iter((False, True))
    assert run.execute(plays.Quiet(), lambda: next(answers)) == []
    loading = [task for _, task in stage.events if task in ("begin", "load")]
    turn, routed = ["begin", "begin", "load", "load"], ["begin", "load"]
    assert loading == turn + 2 * routed + 3 * turn
    places: dict[str, list[str]] = {"bf16": [], "fp32": []}
    for request in stage.asked:
        if request.task == "load" and request.load and "tell" not in request.load.settings.options:
            places[request.arm].append(request.load.environment[placement.VISIBLE])
    assert places == {"bf16": ["0", "1", "0", "1"], "fp32": ["1", "0", "1", "0"]}
    assert not stage.alive
    assert json.loads((tmp_path / "run" / "run.json").read_text())["ended_after"] == 4


def test_a_link_joins_the_gpus_of_a_stage() -> None:
    assert fit.layer_gpus({"tensor_parallel_size": 4, "pipeline_parallel_size": 2}) == 4
    assert fit.layer_gpus({"pipeline_parallel_size": 2}) == 1


def test_a_run_whose_arms_have_other_settings_does_not_go_on(tmp_path: Path, stage: Stage) -> None:
    folder = tmp_path / "run"
    assert plays.run_of(named(folder, one=1, two=2), GPUS).execute(plays.Quiet()) == []
    with pytest.raises(UsageError, match="begun with other settings of two"):
        plays.run_of(named(folder, one=1, two=4), GPUS).execute(plays.Quiet())
    assert plays.run_of(named(folder, one=1, two=2), GPUS).execute(plays.Quiet()) == []


def test_what_is_printed_and_written_is_by_the_arm_s_name(tmp_path: Path, stage: Stage) -> None:
    plays.run_of(named(tmp_path / "run", one=1, two=2), GPUS).execute(plays.Quiet())
    assert {file.name for file in (tmp_path / "run").glob("perf_*.json")} == {
        "perf_one_sm90.json",
        "perf_two_sm90.json",
    }
    assert {folder.name for folder in (tmp_path / "run" / "arms").iterdir()} == {"one", "two"}
