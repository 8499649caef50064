"""Records of schema 1: a folder of each command, made before the change, is read and compared as it was then."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from moe_eval.comparison import gate, gate_text, pairs
from moe_eval.comparison.gate import GateResult
from moe_eval.errors import UsageError
from moe_eval.records import by_arm, run_files
from moe_eval.records.comparison import ComparisonRecord, PairSchedule, QualityComparison
from moe_eval.records.labels import Status
from moe_eval.records.ratios import Interval, Ratio
from moe_eval.records.run import Schedule
from moe_eval.records.shape_comparison import ShapeComparison
from moe_eval.records.verdicts import QualityVerdict, Verdict

GOLDEN = Path(__file__).parent / "golden_schema_1"

# categories, ratios and times of a phase that both forms have under one name
PHASE = """
    kernel_change_ms step_is overlap_change_ms waiting_change_ms residual_ms expert_gemm_ratio predicted_ratio_busy
    predicted_ratio_step
""".split()  # noqa: SIM905
Golden = tuple[str, ComparisonRecord, dict[str, Any]]


@pytest.fixture(scope="module", params=("run", "perf", "ppl"))
def compared(request: pytest.FixtureRequest) -> Golden:
    """A golden folder: its name, its comparison by this code, and the one made by the code of schema 1."""
    folder = GOLDEN / request.param
    before = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    return request.param, pairs.compare(by_arm.read(folder)), before


def close(value: float | None, before: float | None) -> bool:
    return value == before or (value is not None and before is not None and value == pytest.approx(before, rel=1e-9))


def test_arms_have_their_labels_and_figures(compared: Golden) -> None:
    _, comparison, before = compared
    assert comparison.reference == before["reference"]
    assert [arm.name for arm in comparison.arms] == [row["name"] for row in before["arms"]]
    for arm, row in zip(comparison.arms, before["arms"], strict=True):
        names = ("precision", "precision_seen", "engine", "engine_version", "gpu", "emulated", "moe_backend", "error")
        assert {name: getattr(arm, name) for name in names} == {name: row[name] for name in names}
        assert arm.status.value == row["status"]
        assert {name: getattr(arm, name) for name in row["perplexity"] or ()} == (row["perplexity"] or {})
        speed = {
            shape: {name: vars(figure) for name, figure in figures.items()} for shape, figures in arm.speed.items()
        }
        of_one_load = {
            shape: {name: {**figure, "loads": 1} for name, figure in figures.items()}
            for shape, figures in row["speed"].items()
        }
        assert speed == of_one_load
        assert arm.kernels == row["kernels"]


def test_pairs_have_their_verdicts_labels_and_figures(compared: Golden) -> None:
    """Quality is by arrays in the folder of `run` and by what records say in that of `ppl`."""
    _, comparison, before = compared
    assert len(comparison.pairs) == len(before["pairs"])
    for pair, row in zip(comparison.pairs, before["pairs"], strict=True):
        assert (pair.reference, pair.other, pair.is_repeat) == (row["reference"], row["other"], row["again"])
        assert pair.verdict is (Verdict.OPEN if pair.schedule is None else Verdict.QUICK_LOOK)
        assert bool(pair.because) == bool(row["because"])
        assert (pair.settled_by is None) == (row["settled_by"] is None)
        assert list(pair.differs) == row["differs"] == []
        assert [vars(label) for label in pair.labels] == row["labels"]
        planned = row["schedule"]
        assert pair.schedule == (planned and PairSchedule("turns", 1, planned["blocks"] * planned["per_block"], True))
        assert [shape.name for shape in pair.shapes] == [shape["name"] for shape in row["shapes"]]
        assert (pair.quality is None) == (row["quality"] is None)
        if pair.quality:
            _same_quality(pair.quality, row["quality"])
        for shape, shape_before in zip(pair.shapes, row["shapes"], strict=True):
            assert shape.verdict is (Verdict.QUICK_LOOK if shape.speed.e2e_ms else Verdict.OPEN)
            _same_speed(shape, shape_before)
            _same_kernels(shape, shape_before)


def _same_speed(shape: ShapeComparison, before: Mapping[str, Any]) -> None:
    """Arms that took turns were loaded once, so there is the ratio of their medians and no interval."""
    for name, ratio_before in before["speed"].items():
        ratio: Ratio | None = getattr(shape.speed, name)
        assert (ratio is None) == (ratio_before is None)
        if ratio is not None:
            assert (ratio.loads, ratio.low, ratio.high, ratio.source) == (1, None, None, ratio_before["source"])
            reference, other = before["medians"][name]
            assert ratio.value == pytest.approx(reference / other), name
    assert set(shape.figures) == set(before["medians"])
    for name, sides in shape.figures.items():
        both: list[Interval | None] = [sides.reference, sides.other]
        assert [side and side.median for side in both] == before["medians"][name]
        ends = [None if side is None or side.low is None else [side.low, side.high] for side in both]
        assert ends == before["intervals"][name]
    assert (shape.fairness.is_fair, shape.fairness.reason) == (before["fair"], before["fair_reason"])
    clocks: dict[str, list[float | None]] | None = None
    if shape.clocks is not None:
        clocks = {"sm_mhz": [*shape.clocks.sm_mhz], "slow_samples": [*shape.clocks.slow_samples]}
    assert clocks == before["clocks"]
    assert {arm: list(notes) for arm, notes in shape.notes.items()} == before["notes"]


def _same_kernels(shape: ShapeComparison, before: Mapping[str, Any]) -> None:
    assert (shape.kernels is None) == (before["kernels"] is None)
    for name, phase in (shape.kernels or {}).items():
        phase_before = before["kernels"][name]
        assert {category: vars(change) for category, change in phase.categories.items()} == phase_before["categories"]
        assert {field: getattr(phase, field) for field in PHASE} == {field: phase_before[field] for field in PHASE}
        for field in ("step_ms", "busy_ms"):
            assert list(getattr(phase, field) or ()) == (phase_before[field] or [])
        ceiling = phase_before["ceiling_at_that_ratio"] or {"busy": None, "wall": None}
        assert {"busy": phase.ceiling_busy, "wall": phase.ceiling_wall} == ceiling
        for field in ("new", "vanished"):
            assert [kernel.name for kernel in getattr(phase, field)] == [row["name"] for row in phase_before[field]]
    assert (shape.breakdown is None) == (before["breakdown"] is None)
    for name, categories in (shape.breakdown or {}).items():
        assert {category: list(ms) for category, ms in categories.items()} == before["breakdown"][name]
    ceiling = shape.ceiling and {phase: vars(values) for phase, values in shape.ceiling.items()}
    assert ceiling == before["ceiling"]
    decode = (shape.kernels or {}).get("decode")
    predicted = decode and {"busy": decode.predicted_ratio_busy, "step": decode.predicted_ratio_step}
    assert predicted == before["predicted"]
    measured = {"prefill": shape.speed.ttft_ms, "decode": shape.speed.tpot_ms}
    for name, phase in (shape.kernels or {}).items():
        assert phase.measured_ratio == getattr(measured.get(name), "value", None)


def _same_quality(quality: QualityComparison, before: Mapping[str, Any]) -> None:
    assert quality.ln_ppl_ratio is before["ln_ppl_ratio"] is None  # one document has no interval
    assert "at least two documents" in (quality.no_interval or "")
    assert close(quality.ppl_change, before["ppl_change"])
    by_arrays = quality.divergence.kind == "capped"  # which holds a little more than the shared tokens alone
    for name in ("mean", "p99"):
        value, value_before = getattr(quality.divergence, name), before[f"kld_{name}"]
        assert value_before < value < 1.01 * value_before if by_arrays else close(value, value_before)
    assert by_arrays or quality.divergence.kind == "shared ids"
    assert close(quality.divergence.same_top1, before["same_top1"])
    assert quality.noise_floor is before["noise_floor"] is None
    assert quality.verdict is QualityVerdict.NOT_JUDGED
    assert quality.divergence.is_lower_bound
    assert (quality.random_weights, quality.flag) == (before["random_weights"], before["flag"])
    assert bool(quality.calibration) == bool(before["calibration"])


@pytest.mark.parametrize("text", ["speed>=0.5", "speed>=3", "speed[b1]<=2", "ttft>=0.1", "tpot>=9", "verdict==pays"])
def test_one_load_decides_no_gate_on_speed(compared: Golden, text: str) -> None:
    _, comparison, _ = compared
    assert gate.check(comparison, gate_text.parse(text))[0] is GateResult.UNDECIDED


def test_blocks_of_arms_that_were_loaded_again_are_loads(tmp_path: Path) -> None:
    """Then the interval over blocks was one over loads, and it is what it was, but for what a bootstrap drew."""
    folder = shutil.copytree(GOLDEN / "perf", tmp_path / "perf")
    for file in folder.glob("perf_*_cpu.json"):
        old = json.loads(file.read_text(encoding="utf-8"))
        old["schedule"]["mode"] = "reloaded"
        file.write_text(json.dumps(old), encoding="utf-8")
    arms = by_arm.read(folder)
    for arm in arms:
        assert arm.latency is not None
        assert arm.latency.schedule == Schedule("alternating", 2, 2, 5)
        for row in arm.latency.shapes:
            assert [len(load) for load in row.loads] == [2, 2]
            assert [turn.load for turn in row.turns] == [0, 0, 1, 1]
    before = json.loads((GOLDEN / "perf" / "comparison.json").read_text(encoding="utf-8"))
    for pair, row in zip(pairs.compare(arms).pairs, before["pairs"], strict=True):
        assert (pair.verdict, pair.schedule) == (Verdict.QUICK_LOOK, PairSchedule("alternating", 2, 2, one_run=True))
        for shape, shape_before in zip(pair.shapes, row["shapes"], strict=True):
            for name, ratio_before in shape_before["speed"].items():
                ratio: Ratio | None = getattr(shape.speed, name)
                assert (ratio is None) == (ratio_before is None)
                if ratio is not None:
                    assert ratio.value == pytest.approx(ratio_before["value"])
                    half_width = math.log(ratio_before["high"] / ratio_before["value"])
                    for end in ("low", "high"):
                        drawn = math.log(getattr(ratio, end) / ratio_before[end])
                        assert abs(drawn) < 0.02 * half_width, (name, end)


@pytest.mark.parametrize(
    ("mode", "schedule"),
    [("sequential", Schedule("alternating", 1, 4, 5)), ("interleaved", Schedule("turns", 1, 4, 5))],
)
def test_blocks_of_arms_that_were_loaded_once_are_one_load(tmp_path: Path, mode: str, schedule: Schedule) -> None:
    old = json.loads((GOLDEN / "perf" / "perf_bf16_cpu.json").read_text(encoding="utf-8"))
    old["schedule"]["mode"] = mode
    (tmp_path / "perf_bf16_cpu.json").write_text(json.dumps(old), encoding="utf-8")
    record = by_arm.read(tmp_path)[0].latency
    assert record is not None
    assert record.schedule == schedule
    for row, before in zip(record.shapes, old["shapes"], strict=True):
        (load,) = row.loads
        assert [sample.ended for sample in load] == [sample["ended"] for block in before["blocks"] for sample in block]
        assert {turn.load for turn in row.turns} == {0}


def test_the_record_of_a_run_is_read() -> None:
    (run,) = run_files.read_run(GOLDEN / "run")
    assert (run.status, run.command, run.tasks) == (Status.FINISHED, "run", 25)
    assert dict(run.evaluators) == dict.fromkeys(("bf16", "fp32"), ("quality", "latency", "kernels"))
    assert run.schedule == Schedule("turns", 1, 4, 5)
    assert run_files.read_run(GOLDEN / "ppl") == []


def test_sentences_in_the_place_of_a_figure_are_reasons(tmp_path: Path) -> None:
    old = json.loads((GOLDEN / "perf" / "perf_bf16_cpu.json").read_text(encoding="utf-8"))
    old |= {"routing": "not measured", "rates": "not asked for"}
    old["shapes"][0]["floors"] = "not computed: no rates"
    (tmp_path / "perf_bf16_cpu.json").write_text(json.dumps(old), encoding="utf-8")
    record = by_arm.read(tmp_path)[0].latency
    assert (record.routing, record.no_routing) == (None, "not measured")
    assert (record.rates, record.no_rates) == (None, "not asked for")
    assert record.shapes[0].floors.no_floors == "not computed: no rates"
    assert record.shapes[1].floors.decode_step is not None
    assert record.shapes[1].turns[0].slow_samples == (None,)


@pytest.mark.parametrize(
    ("path", "value", "where"),
    [
        (("status",), "done", r"\$.status"),
        (("shapes", 0, "blocks", 0, 0, "ended"), "late", r"\$.shapes\[\d\].loads\[\d\]\[\d\].ended"),
        (("shapes", 1, "metrics", "e2e_ms", "median"), None, r"\$.shapes\[\d\].figures.metrics.e2e_ms.median"),
        (("shapes", 0), 7, r"\$.shapes\[\d\]"),
        (("labels", "engine"), "vllm", r"\$.labels.engine"),
        (("schedule", "mode"), "both", r"\$.schedule.mode"),
        (("mean_latency_ms",), 1e300, r"no figure is as large as \$.mean_latency_ms"),
    ],
)
def test_a_damaged_record_is_refused_with_the_path_of_what_does_not_fit(
    tmp_path: Path, path: tuple[str | int, ...], value: object, where: str
) -> None:
    broken = json.loads((GOLDEN / "perf" / "perf_bf16_cpu.json").read_text(encoding="utf-8"))
    inner: Any = broken
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    (tmp_path / "perf_bf16_cpu.json").write_text(json.dumps(broken), encoding="utf-8")
    with pytest.raises(UsageError, match=rf"perf_bf16_cpu.json is not a record of moe-eval perf .*{where}"):
        by_arm.read(tmp_path)


def test_a_perplexity_that_is_no_number_is_missing_and_broken(tmp_path: Path) -> None:
    for name in ("bf16", "fp8"):
        old = json.loads((GOLDEN / "ppl" / f"ppl_{name}_cpu.json").read_text(encoding="utf-8"))
        if name == "fp8":
            old |= {"perplexity": float("nan"), "ln_ppl_ratio": dict.fromkeys(("value", "error", "low", "high"))}
            old["divergence"]["mean"] = float("nan")
        (tmp_path / f"ppl_{name}_cpu.json").write_text(json.dumps(old), encoding="utf-8")
    comparison = pairs.compare(by_arm.read(tmp_path))
    assert comparison.arms[1].token_ppl is None
    assert comparison.pairs[0].quality.verdict is QualityVerdict.BROKEN
    assert "the perplexity of fp8 is no number" in comparison.pairs[0].quality.sentence
