"""The Python interface: what it returns and raises, and what importing it costs."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import moe_eval
from moe_eval import interface
from moe_eval.cli import execute
from moe_eval.cli.execute import Outcome
from moe_eval.cli.options.measuring import RunOptions
from moe_eval.errors import EngineError, TrackingError, UsageError
from moe_eval.records.comparison import ComparisonRecord
from moe_eval.records.run import Schedule
from moe_eval.runner.placement import Placement
from moe_eval.runner.plan import Plan
from tests.doubles import recorded_arms as made

NOTHING = ComparisonRecord("", (), ())
PLAN = Plan((), {}, (), Schedule("alternating", 1, 1, 5), (), (), (), {}, Placement(together=False, rounds=({},)))


def test_importing_it_costs_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import moe_eval"], capture_output=True, text=True, check=True
    )
    before = subprocess.run([sys.executable, "-X", "importtime", "-c", ""], capture_output=True, text=True, check=True)
    modules, without = (
        {line.rpartition("|")[2].strip() for line in text.splitlines()} for text in (done.stderr, before.stderr)
    )
    assert modules - without == {"moe_eval"}


def test_it_names_what_it_has() -> None:
    assert moe_eval.__version__[0].isdigit()
    assert moe_eval.read is interface.read
    assert {"run", "compare", "read", "Results", "__version__"} == set(moe_eval.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = moe_eval.nothing  # type: ignore[attr-defined]


def test_a_folder_is_read_into_records(recorded: Path) -> None:
    results = moe_eval.read(recorded)
    assert [arm.name for arm in results.arms] == ["bf16", "fp8"]
    assert results.folder == recorded
    assert results.comparison is not None
    (pair,) = results.comparison.pairs
    assert (pair.reference, pair.other) == ("bf16", "fp8")
    speed = pair.shapes[0].speed.e2e_ms
    assert speed is not None
    assert speed.value == pytest.approx(100.5 / 90.5)


def test_a_data_frame_has_a_row_for_every_figure(recorded: Path) -> None:
    frame = moe_eval.read(recorded).to_dataframe()
    assert list(frame.columns) == ["arm", "precision", "evaluator", "shape", "metric", "median", "low", "high"]
    assert not frame.duplicated(["arm", "evaluator", "shape", "metric"]).any()
    rows = frame.set_index(["arm", "evaluator", "shape", "metric"])
    shape = f"b8_i{made.INPUT}_o{made.OUTPUT}"
    timed = rows.loc[("fp8", "latency", shape, "e2e_ms")]
    assert timed["median"] == pytest.approx(150.5)
    assert timed["low"] <= timed["median"] <= timed["high"]
    ratio = rows.loc[("fp8", "quality", "", "ln_ppl_ratio")]
    assert ratio["low"] < ratio["median"] < ratio["high"]
    assert ("bf16", "quality", "", "ln_ppl_ratio") not in rows.index
    assert rows.loc[("bf16", "quality", "", "token_ppl"), "median"] > 1
    assert math.isnan(rows.loc[("bf16", "quality", "", "token_ppl"), "low"])


def test_kernels_are_rows_too() -> None:
    record = made.kernels("bf16")
    arm = interface.ArmRecords("bf16", "bf16", kernels={record.shape or "": record})
    frame = interface.Results([arm]).to_dataframe()
    assert set(frame["evaluator"]) == {"kernels"}
    row = frame[frame["metric"] == "decode/expert_gemm_ms"].iloc[0]
    assert row["median"] == record.phases["decode"].categories["expert_gemm"].ms


def test_sources_are_compared(recorded: Path, tmp_path: Path) -> None:
    faster = tmp_path / "faster"
    faster.mkdir()
    made.write(faster, [made.arm("nvfp4", {1: [[50.0, 51.0]] * 3}, run_id="f" * 32)])
    results = moe_eval.compare(recorded, str(faster))
    assert results.comparison is not None
    assert [pair.other for pair in results.comparison.pairs] == ["fp8", "nvfp4"]
    assert results.folder is None
    with pytest.raises(UsageError, match="There is one arm alone"):
        moe_eval.compare(faster)
    with pytest.raises(UsageError, match="comes twice"):
        moe_eval.compare(recorded, recorded)
    with pytest.raises(UsageError, match="There is no source"):
        moe_eval.compare()
    assert moe_eval.read(faster).comparison is None


@pytest.fixture
def outcome(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `run` gets back, then the options that it came to."""
    calls: list[Any] = [Outcome(NOTHING, PLAN)]

    def measure(options: RunOptions, out: Any) -> Outcome:
        out("not printed")
        calls.append(options)
        result = calls[0]
        assert isinstance(result, Outcome)
        return result

    monkeypatch.setattr(execute, "measure", measure)
    return calls


def test_run_takes_the_options_of_the_command(
    outcome: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("batch_size: [4]\nnum_chunks: 3\n")
    results = moe_eval.run(
        config=file, batch_size=[1, 8], emulate=True, model_path=None, output_dir=tmp_path, timeout=9
    )
    assert outcome[1] == RunOptions(
        config=file, batch_size=(1, 8), emulate=True, num_chunks=3, output_dir=tmp_path, timeout=9.0
    )
    assert (results.arms, results.comparison, results.folder) == ([], None, tmp_path)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"batchsize": 1}, "There is no option batchsize. Did you mean batch_size?"),
        ({"dry_run": True}, "There is no option dry_run."),
        ({"gate": "speed>=1"}, "There is no option gate."),
        ({"emulate": "yes"}, "emulate has to be true or false"),
        ({"loads": 0}, "loads has to be 1 to 1000."),
        ({"min_gain": 1}, "min_gain has to be 0 to 0.5 (0.01 is 1 %)."),
        ({"evaluators": ["perplexity"]}, "evaluators has to be some of quality, tasks, latency, kernels, serving."),
    ],
)
def test_run_raises_instead_of_exiting(outcome: list[Any], options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError) as refused:
        moe_eval.run(**options)
    assert sentence in str(refused.value)
    assert len(outcome) == 1


def test_failures_are_returned_or_raised(outcome: list[Any], recorded: Path) -> None:
    arms = moe_eval.read(recorded).arms
    outcome[0] = Outcome(NOTHING, PLAN, arms, failures=["fp8 quality: out of memory"])
    assert moe_eval.run().failures == ("fp8 quality: out of memory",)
    outcome[0] = Outcome(NOTHING, PLAN, [], failures=["bf16 quality: out of memory"])
    with pytest.raises(EngineError, match="bf16 quality: out of memory"):
        moe_eval.run()
    outcome[0] = Outcome(NOTHING, PLAN, arms, tracking_failure="log it later")
    with pytest.raises(TrackingError, match="log it later"):
        moe_eval.run()
