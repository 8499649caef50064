"""Output folders read back: what belongs to which arm, which is the reference, and what is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from moe_eval.comparison import pairs
from moe_eval.errors import UsageError
from moe_eval.records import by_arm, disk
from moe_eval.records.by_arm import ArmRecords
from moe_eval.records.kernels import KernelsRecord
from moe_eval.records.labels import ArmLabels, ArmSettings, Status
from moe_eval.records.run import RunRecord
from moe_eval.records.verdicts import Verdict
from tests.doubles import recorded_arms as made

TWO = {1: [[100.0, 101.0], [100.0, 99.0]], 8: [[300.0, 301.0], [300.0, 299.0]]}
SHAPE = "b1_i512_o9"
GOLDEN = Path(__file__).parent / "golden_schema_1"


def everything() -> list[ArmRecords]:
    """Three arms and the first one again, all that there is of each."""
    scored = {"bf16": made.quality("bf16", made.scores()), "fp8": made.quality("fp8", made.scores(0.01))}
    traced = {
        "bf16": {SHAPE: made.kernels("bf16", label="bf16")},
        "fp8_block": {"": made.kernels("fp8_block", fp8=True, shape=None)},
    }
    return [
        ArmRecords(name, name.removesuffix("-again"), made.latency(name, TWO), scored.get(name), traced.get(name, {}))
        for name in ("bf16", "bf16-again", "fp8", "fp8_block")
    ]


def order(folder: Path) -> list[str]:
    return [arm.name for arm in by_arm.read(folder)]


def test_everything_of_an_arm_is_joined_under_its_name(tmp_path: Path) -> None:
    made.write(tmp_path, everything())
    made.scores().save(tmp_path / "ppl_bf16_sm90.npz")
    made.scores().save(tmp_path / "ppl_bf16_sm90.batch1.npz")
    (tmp_path / "workload_0123456789abcdef.json").write_text("{}")
    (tmp_path / "notes.json").write_text("not JSON")
    arms = by_arm.read(tmp_path)
    assert [arm.name for arm in arms] == ["bf16", "bf16-again", "fp8", "fp8_block"]
    assert [arm.precision for arm in arms] == ["bf16", "bf16", "fp8", "fp8_block"]
    for arm, expected in zip(arms, everything(), strict=True):
        assert (arm.latency, arm.quality, arm.kernels) == (expected.latency, expected.quality, expected.kernels)
    assert [arm.arrays for arm in arms] == [tmp_path / "ppl_bf16_sm90.npz", None, None, None]


@pytest.mark.parametrize("names", list(permutations(("bf16", "fp8", "nvfp4"))))
@pytest.mark.parametrize("kind", ["latency", "quality"])
def test_the_reference_is_the_first_arm_of_the_run(tmp_path: Path, names: tuple[str, ...], kind: str) -> None:
    timed = [made.arm(name, TWO) for name in names]
    scored = [ArmRecords(name, name, quality=made.quality(name, made.scores())) for name in names]
    made.write(tmp_path, timed if kind == "latency" else scored, record=made.run(names))
    remaining = [name for name in ("bf16", "fp8", "nvfp4") if name != names[0]]
    assert order(tmp_path) == [names[0], *remaining]


@pytest.mark.parametrize("names", list(permutations(("bf16", "bf16-again", "fp32"))))
def test_the_reference_of_schema_1_is_what_its_records_say(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        content = json.loads((GOLDEN / "perf" / f"perf_{name}_cpu.json").read_text(encoding="utf-8"))
        content["reference"] = None if name == names[0] else names[0]
        (tmp_path / f"perf_{name}_cpu.json").write_text(json.dumps(content), encoding="utf-8")
    remaining = [name for name in ("bf16", "bf16-again", "fp32") if name != names[0]]
    assert order(tmp_path) == [names[0], *remaining]


def test_the_first_that_finished_is_the_reference(tmp_path: Path) -> None:
    arms = [made.arm("fp8", TWO), made.arm("bf16", TWO, status=Status.FAILED), made.arm("nvfp4", TWO)]
    made.write(tmp_path, arms)
    assert order(tmp_path) == ["fp8", "bf16", "nvfp4"]  # by precision, where no run is recorded
    made.write(tmp_path, arms, record=made.run(("bf16", "nvfp4", "fp8")))
    assert order(tmp_path) == ["nvfp4", "bf16", "fp8"]


def test_the_order_is_that_of_precisions_and_not_of_names() -> None:
    precisions = {"a": "nvfp4", "b": "fp8_block", "c": "fp8", "d": "bf16", "e": "fp8-w8a16"}
    arms = [ArmRecords(name, precision) for name, precision in precisions.items()]
    assert [arm.name for arm in by_arm.in_order(arms)] == ["d", "c", "e", "b", "a"]


def test_a_run_s_arrays_are_found_and_a_trace_that_failed_is_none(tmp_path: Path) -> None:
    made.write(tmp_path, [made.arm("bf16", TWO)])
    arrays = tmp_path / "arms" / "bf16" / "perplexity.npz"
    arrays.parent.mkdir(parents=True)
    made.scores().save(arrays)
    failed = KernelsRecord(arm="bf16", shape=SHAPE, status=Status.FAILED, error="no memory")
    disk.write_record(tmp_path / f"kernels_bf16_sm90_{SHAPE}.json", failed)
    (arm,) = by_arm.read(tmp_path)
    assert (arm.arrays, arm.kernels) == (arrays, {})
    old = {"shape": SHAPE, "status": "failed", "error": "no memory"}
    (tmp_path / f"kernels_bf16_sm90_{SHAPE}.json").write_text(json.dumps(old))
    assert by_arm.read(tmp_path)[0].kernels == {}


def test_a_comparison_beside_the_records_stands_in_for_arrays(tmp_path: Path) -> None:
    """Only of arms that one run has scored, and only where it can be read."""
    arms = [
        ArmRecords(name, name, quality=made.quality(name, made.scores(worse)), folder=tmp_path)
        for name, worse in (("bf16", 0.0), ("fp8", 0.02))
    ]
    made.write(tmp_path, arms, "cpu")
    for name, worse in (("bf16", 0.0), ("fp8", 0.02)):
        made.scores(worse).save(tmp_path / f"ppl_{name}_cpu.npz")
    comparison = pairs.compare(by_arm.read(tmp_path))
    disk.write_record(tmp_path / "ppl_comparison.json", comparison)
    for file in tmp_path.glob("*.npz"):
        file.unlink()
    quality = comparison.pairs[0].quality
    assert quality.ln_ppl_ratio is not None
    assert by_arm.read(tmp_path)[1].compared == {"bf16": quality}
    assert pairs.compare(by_arm.read(tmp_path)) == comparison
    elsewhere = replace(arms[1], quality=made.quality("fp8", made.scores(0.02), run_id="f" * 32))
    made.write(tmp_path, [elsewhere], "cpu")
    assert by_arm.read(tmp_path)[1].compared == {}
    made.write(tmp_path, arms, "cpu")
    (tmp_path / "ppl_comparison.json").write_text("{")
    assert by_arm.read(tmp_path)[1].compared == {}


def test_folders_without_records_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no record .*Give the --output_dir"):
        by_arm.read(tmp_path)
    with pytest.raises(UsageError, match="There is no folder"):
        by_arm.read(tmp_path / "absent")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("perf_bf16_sm90.json", "{", "is damaged"),
        ("perf_bf16_sm90.json", "\ud800", "is damaged"),
        ("perf_bf16_sm90.json", "[" * 100_000, "is damaged"),
        ("perf_bf16_sm90.json", "[]", "is not a record of moe-eval perf"),
        ("perf_bf16_sm90.json", "{}", r"is not a record of moe-eval perf .*\$\.shapes"),
        ("perf_bf16_sm90.json", '{"schema": 2}', "missing required field `arm`"),
        ("ppl_bf16_cpu.json", '{"schema": 3}', r"has schema 3\. This moe_eval reads schema 1 and 2"),
        ("ppl_bf16_cpu.json", '{"schema": []}', r"has schema \[\]\. This moe_eval"),
        ("kernels_bf16_cpu_b1_i2_o3.json", "{}", r"got `null` - at `\$\.phases`"),
        ("kernels_bf16_cpu_b1_i2_o3.json", '{"phases": 1, "precision_seen": null}', r"got `int` - at `\$\.phases`"),
    ],
)
def test_files_that_are_no_records_are_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(UsageError, match=message) as refused:
        by_arm.read(tmp_path)
    assert str(tmp_path / name) in str(refused.value)


def test_one_arm_from_two_machines_and_files_under_other_names_are_refused(tmp_path: Path) -> None:
    arms = [made.arm("bf16", TWO)]
    made.write(tmp_path, arms)
    made.write(tmp_path, arms, "sm100")
    with pytest.raises(UsageError, match=r"perf_bf16_sm100.json and perf_bf16_sm90.json are of the same arm"):
        by_arm.read(tmp_path)
    (tmp_path / "perf_bf16_sm100.json").rename(tmp_path / "perf_fp8_sm100.json")
    with pytest.raises(UsageError, match=r"is the record of bf16\. Give the file its name back"):
        by_arm.read(tmp_path)


def _spots(value: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(spot for key, item in inner for spot in _spots(item, (*path, key)))]


def _contents(arms: list[ArmRecords], run: RunRecord) -> dict[str, object]:
    """The files of a run by name."""
    files: dict[str, object] = {"run.json": run}
    for arm in arms:
        files |= {f"perf_{arm.name}_sm90.json": arm.latency, f"ppl_{arm.name}_sm90.json": arm.quality}
        files |= {f"kernels_{arm.name}_sm90_{SHAPE}.json": record for record in arm.kernels.values()}
    return {name: json.loads(msgspec.json.encode(record)) for name, record in files.items() if record}


def _schema_2() -> dict[str, object]:
    scored, traced = made.scores(), {SHAPE: made.kernels("x")}
    arms = [
        ArmRecords(name, name, made.latency(name, {1: TWO[1]}), made.quality(name, scored), traced)
        for name in ("bf16", "fp8")
    ]
    return _contents(arms, made.run(("bf16", "fp8")))


def _schema_1() -> dict[str, object]:
    files = [file for file in (GOLDEN / "run").glob("*_*.json") if not file.name.startswith("workload")]
    return {
        file.name: json.loads(file.read_text(encoding="utf-8"))
        for file in [*files, GOLDEN / "run" / "run.json"]
        if "b2_i16" not in file.name
    }


WHOLE = {"schema_1": _schema_1(), "schema_2": _schema_2()}
SPOTS = [(schema, spot) for schema, files in WHOLE.items() for spot in _spots(files) if len(spot) > 1]


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    spot=st.sampled_from(SPOTS), wrong=st.sampled_from([None, 1, 0.5, -1, 1e300, 10**400, "x", [], {}, True, "gone"])
)
@example(spot=("schema_1", ("perf_fp32_cpu.json", "shapes", 0, "blocks", 0)), wrong=None)
def test_a_record_with_anything_wrong_in_it_is_refused_or_compared(
    tmp_path: Path, spot: tuple[str, tuple[Any, ...]], wrong: object
) -> None:
    """Whatever stands anywhere in a record: one sentence, or a comparison, and never another exception."""
    schema, path = spot
    broken: Mapping[str, object] = copy.deepcopy(WHOLE[schema])
    inner: Any = broken
    for key in path[:-1]:
        inner = inner[key]
    if wrong == "gone":
        del inner[path[-1]]
    else:
        inner[path[-1]] = wrong
    for file in tmp_path.glob("*.json"):
        file.unlink()
    for name, content in broken.items():
        (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
    message = None
    try:
        msgspec.json.encode(pairs.compare(by_arm.read(tmp_path)))
    except UsageError as error:
        message = str(error)
    assert message is None or message.endswith(".")


def test_a_perplexity_that_is_no_number_is_missing_and_broken(tmp_path: Path) -> None:
    arms = [ArmRecords(name, name, quality=made.quality(name, made.scores())) for name in ("bf16", "fp8")]
    quality = arms[1].quality
    broken = replace(quality, figures=replace(quality.figures, perplexity=float("nan")))
    made.write(tmp_path, [arms[0], replace(arms[1], quality=broken)])
    comparison = pairs.compare(by_arm.read(tmp_path))
    assert comparison.arms[1].token_ppl is None
    assert comparison.pairs[0].verdict is Verdict.BROKEN


MODEL = ArmSettings("vllm", "/models/a", "bf16", {"tensor_parallel_size": 1})


@pytest.mark.parametrize(
    ("facts", "settings", "words"),
    [
        ({}, {}, None),
        ({}, {"gpus": (1,)}, None),
        ({}, {"checkpoint": "a, by another path"}, None),
        ({"fingerprint": "other"}, {}, "differ in checkpoint"),
        ({"weights": "random"}, {}, "weights (checkpoint and random)"),
        ({"name": "transformers"}, {}, "engine (vllm and transformers)"),
        ({}, {"options": {"tensor_parallel_size": 2}}, "tensor_parallel_size (1 and 2)"),
        ({}, {"options": {}}, "tensor_parallel_size (1 and None)"),
        ({}, {"environment": {"VLLM_X": "1"}}, "VLLM_X (None and 1)"),
    ],
)
@pytest.mark.parametrize("loaded", [True, False])
def test_records_of_two_runs_are_one_arm_only_where_checkpoint_and_settings_agree(
    tmp_path: Path, facts: dict[str, Any], settings: dict[str, Any], words: str | None, *, loaded: bool
) -> None:
    engine = replace(made.TIMED_ON, fingerprint="same", weights="checkpoint", name="vllm")
    timed = made.latency("bf16", TWO, run_id="1" * 32)
    scored = made.quality("bf16", made.scores(), run_id="2" * 32)
    timed, scored = (
        replace(
            record,
            origin=replace(record.origin, arm=replace(MODEL, **planned)),
            labels=replace(record.labels, engine=replace(engine, **seen)),
        )
        for record, planned, seen in ((timed, {}, {}), (scored, settings, facts))
    )
    if not loaded:  # then the plan alone tells
        scored = replace(scored, labels=ArmLabels(), status=Status.FAILED, figures=None)
        is_checkpoint = "checkpoint" in settings
        words = "checkpoint (/models/a and a, by another path)" if is_checkpoint else words if settings else None
    made.write(tmp_path, [ArmRecords("bf16", "bf16", timed, scored)])
    if words is None:
        assert [(arm.latency, arm.quality) for arm in by_arm.read(tmp_path)] == [(timed, scored)]
    else:
        with pytest.raises(UsageError, match="have one arm's name and are of two arms") as refused:
            by_arm.read(tmp_path)
        assert words in str(refused.value)
    assert len(by_arm.read(tmp_path, "1" * 32)) == 1, "each run can still be read by itself"
