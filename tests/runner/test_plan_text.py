"""What a plan says before anything is loaded: loads, minutes, and which gain they find by what is known."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy import stats as distributions

from moe_eval import stats
from moe_eval.machine.hardware import Gpu
from moe_eval.records.latency import LatencyRecord
from moe_eval.records.run import Schedule
from moe_eval.runner import plan as planning
from moe_eval.runner import plan_text, scatter
from moe_eval.runner.request import RunRequest
from tests.doubles import plays
from tests.doubles import recorded_arms as made
from tests.doubles.arm_process import Stage

H100 = Gpu(made.GPU, "9.0", 80 << 30, "GPU-0")
FOR_ONE = 3 << 29  # bytes of memory that hold one arm of the shipped model and not two


def text_of(request: RunRequest, gpus: tuple[Gpu, ...] = ()) -> str:
    return plan_text.describe(planning.make(request, gpus), request, gpus)


def line(text: str, name: str) -> str:
    return next(row for row in text.splitlines() if row.startswith(f"  {name}: "))


def found(text: str) -> float:
    """The gain that the plan says its loads find."""
    match = re.search(r"find a gain of ([0-9.]+)x in 9 of 10 runs, a smaller one less often$", line(text, "verdict"))
    assert match
    return float(match[1])


def record(folder: Path, loads: Sequence[Sequence[float]], **options: object) -> LatencyRecord:
    """A record of an earlier run, written to its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    arm = made.arm("bf16", {1: loads}, **options)
    made.write(folder, [arm])
    assert arm.latency is not None
    return arm.latency


@pytest.mark.parametrize(
    ("free", "mode"),
    [(1 << 40, "the arms of a load live at once and take turns"), (FOR_ONE, "one arm loaded at a time")],
)
def test_it_says_how_often_and_how_arms_are_loaded(
    tmp_path: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch, free: int, mode: str
) -> None:
    plays.memory(monkeypatch, free)
    sizes = "b1_i8_o4, b2_i8_o4"
    text = text_of(plays.request(tmp_path / "run", iterations=20, loads=4))
    assert line(text, "shapes") == f"  shapes: {sizes}; 4 loads of 5 iterations, {mode}"
    text = text_of(plays.request(tmp_path / "run", iterations=1, loads=1))
    assert line(text, "shapes") == f"  shapes: {sizes}; 1 load of 1 iteration, {mode}"
    text = text_of(plays.request(tmp_path / "run", iterations=20, loads=4, most_loads=8))
    assert line(text, "shapes") == f"  shapes: {sizes}; up to 8 loads of 5 iterations, {mode}"


@pytest.mark.parametrize(("most_loads", "count"), [(None, "10 loads"), (6, "up to 14 loads")])
def test_it_says_how_many_minutes_all_loads_take_and_one(
    tmp_path: Path, stage: Stage, most_loads: int | None, count: str
) -> None:
    """Two arms are loaded so often, and once more to tell their routing. Loading takes nearly all of the time here."""
    text = text_of(plays.request(tmp_path / "run", iterations=4, loads=4, most_loads=most_loads))
    match = re.search(rf"about (\d+) minutes for {count} \((\d+\.\d) a load\), if loading takes 10 s and", text)
    assert match
    loads = int(count.split()[-2])
    assert float(match[2]) == pytest.approx(10 / 60, abs=0.1)
    assert int(match[1]) == pytest.approx(loads * float(match[2]), abs=0.05 * loads + 0.5)


def test_the_gain_that_is_found_is_found_in_nine_of_ten_runs(tmp_path: Path, stage: Stage) -> None:
    """Four loads at 1 % assumed, two shapes. Whole runs are drawn, of which one shape has that gain."""
    text = text_of(plays.request(tmp_path / "run", loads=4))
    assert "4 loads that scatter by 1 % (assumed) find a gain of" in line(text, "verdict")
    generator, draws, gain = np.random.default_rng(0), 20_000, found(text)
    logs = generator.normal(math.log(gain), 0.01 * math.sqrt(2), (draws, 4))
    low = logs.mean(axis=1) - distributions.t.isf(0.025 / 2, 3) * distributions.sem(logs, axis=1)
    assert (low > math.log(1.01)).mean() == pytest.approx(0.9, abs=0.015)


def test_more_loads_find_smaller_gains_and_more_comparisons_only_larger_ones(tmp_path: Path, stage: Stage) -> None:
    folder = tmp_path / "run"
    gains = [found(text_of(plays.request(folder, loads=loads))) for loads in (3, 4, 8, 16)]
    assert gains == sorted(gains, reverse=True)
    more = found(text_of(plays.request(folder, loads=4, precisions=("bf16", "fp32", "fp16"))))
    assert more > gains[1]
    until = text_of(plays.request(folder, loads=4, most_loads=8))
    assert "up to 8 loads that scatter by" in line(until, "verdict")
    assert found(until) >= gains[2], "a part of the error rate has been spent on earlier looks"


@pytest.mark.parametrize("loads", [1, 2])
def test_fewer_than_three_loads_are_a_quick_look(tmp_path: Path, stage: Stage, loads: int) -> None:
    text = text_of(plays.request(tmp_path / "run", loads=loads))
    assert line(text, "verdict") == "  verdict: a quick look without a verdict, which takes 3 loads"


def test_an_arm_alone_has_no_verdict_to_plan(tmp_path: Path, stage: Stage) -> None:
    assert "verdict: " not in text_of(plays.request(tmp_path / "run", precisions=("bf16",), loads=4))
    assert "verdict: " not in text_of(plays.request(tmp_path / "run", evaluators=("quality",)))


def test_loads_scatter_as_those_of_earlier_records_beside_the_folder(tmp_path: Path, stage: Stage) -> None:
    first = [[100.0, 101.0, 99.0], [103.0, 103.0, 104.0], [98.0, 97.5, 98.5]]
    second = [[50.0], [50.5]]
    record(tmp_path / "earlier_run", first)
    record(tmp_path / "run" / "earlier" / "20260101T000000", second)
    deviations = [np.log([100.0, 103.0, 98.0]), np.log([50.0, 50.5])]
    pooled = math.sqrt(sum(((logs - logs.mean()) ** 2).sum() for logs in deviations) / 3)
    assert scatter.of_machine(tmp_path / "run", made.GPU) == pytest.approx(pooled)
    gpus = (H100,)
    text = text_of(plays.request(tmp_path / "run", loads=4), gpus)
    assert f"loads that scatter by {100 * pooled:.2g} % (as earlier records of this machine)" in line(text, "verdict")
    level = 0.025 / 2
    assert found(text) == pytest.approx(1.01 * math.exp(stats.detectable(4, pooled, level, 0.9)), abs=6e-4)


def test_records_of_another_gpu_of_one_load_or_damaged_do_not_count(tmp_path: Path) -> None:
    record(tmp_path / "other_gpu", [[100.0], [150.0]], gpu="another")
    record(tmp_path / "one_load", [[100.0, 150.0]])
    record(tmp_path / "failed", [[100.0], []])
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "perf_bf16_sm90.json").write_text('{"schema": 2, "status": ')
    (tmp_path / "damaged" / "perf_fp8_sm90.json").mkdir()
    (tmp_path / "damaged" / "perf_run.json").write_text("{}")
    assert scatter.of_machine(tmp_path / "run", made.GPU) is None
    assert scatter.of_machine(tmp_path / "run", "another") == pytest.approx(math.log(1.5) / math.sqrt(2))
    assert scatter.of_machine(tmp_path / "run", None) is None


def test_loads_that_do_not_scatter_at_all_find_any_gain_above_the_least(tmp_path: Path) -> None:
    text = scatter.sentence(Schedule("turns", 4, 5, 5), 1, 0.02, 0.0)
    assert text.startswith("4 loads that scatter by 0 % (as earlier records of this machine) find a gain of 1.020x")
