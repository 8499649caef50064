"""Output folders read back: what belongs to which arm, which is the reference, and what is refused."""

from __future__ import annotations

import copy
import json
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moe_eval.comparison import pairs
from moe_eval.errors import UsageError
from moe_eval.records import by_arm
from moe_eval.records.by_arm import ArmResults
from tests import recorded_arms as made

TWO = {1: [[100.0, 101.0], [100.0, 99.0]], 8: [[300.0, 301.0], [300.0, 299.0]]}
SHAPE = "b1_i512_o9"


def everything() -> list[ArmResults]:
    """Three arms and the first one again, all that there is of each."""
    base, worse = made.scores(), made.scores(0.01)
    names = ("bf16", "bf16-again", "fp8", "fp8_block")
    arms = [made.perf(name, TWO, reference=None if name == "bf16" else "bf16") for name in names]
    scored = {"bf16": made.ppl("bf16", base, ("bf16", base)), "fp8": made.ppl("fp8", worse, ("bf16", base))}
    traced = {
        "bf16": {SHAPE: made.kernels("bf16", label="bf16")},
        "fp8_block": {"": made.kernels("x", fp8=True, shape="")},
    }
    return [
        ArmResults(name, name.removesuffix("-again"), record, scored.get(name), traced.get(name, {}))
        for name, record in zip(names, arms, strict=True)
    ]


def test_everything_of_an_arm_is_joined_under_its_name(tmp_path: Path) -> None:
    made.write(tmp_path, everything())
    made.scores().save(tmp_path / "ppl_bf16_sm90.npz")
    made.scores().save(tmp_path / "ppl_bf16_sm90.batch1.npz")
    (tmp_path / "workload_0123456789abcdef.json").write_text("{}")
    (tmp_path / "notes.json").write_text("not JSON")
    found = by_arm.read(tmp_path)
    assert [each.name for each in found] == ["bf16", "bf16-again", "fp8", "fp8_block"]
    assert [each.precision for each in found] == ["bf16", "bf16", "fp8", "fp8_block"]
    for one, two in zip(found, everything(), strict=True):
        assert (one.perf, one.ppl, one.kernels) == (two.perf, two.ppl, two.kernels)
    assert [each.arrays for each in found] == [tmp_path / "ppl_bf16_sm90.npz", None, None, None]


@pytest.mark.parametrize("order", list(permutations(("bf16", "fp8", "nvfp4"))))
def test_the_reference_is_the_one_that_the_others_were_compared_with(tmp_path: Path, order: tuple[str, ...]) -> None:
    arms = [made.arm(name, TWO, reference=None if name == order[0] else order[0]) for name in order]
    made.write(tmp_path, arms)
    rest = [name for name in ("bf16", "fp8", "nvfp4") if name != order[0]]
    assert [each.name for each in by_arm.read(tmp_path)] == [order[0], *rest]
    base = made.scores()
    scored = [ArmResults(n, n, ppl=made.ppl(n, base, (order[0], base))) for n in order]
    assert [each.name for each in by_arm.in_order(scored)] == [order[0], *rest]


def test_a_run_that_broke_off_has_the_first_precision_that_finished_as_reference(tmp_path: Path) -> None:
    """Until a run compares its arms every record names no reference."""
    arms = [made.arm("fp8", TWO), made.arm("bf16", TWO, status="failed"), made.arm("nvfp4", TWO)]
    made.write(tmp_path, arms)
    assert [each.name for each in by_arm.read(tmp_path)] == ["fp8", "bf16", "nvfp4"]
    base = made.scores()
    scored = [ArmResults(name, name, ppl=made.ppl(name, base)) for name in ("nvfp4", "fp8-w8a16", "fp8", "bf16")]
    assert [each.name for each in by_arm.in_order(scored)] == ["bf16", "fp8", "fp8-w8a16", "nvfp4"]


def test_the_order_is_that_of_precisions_and_not_of_names() -> None:
    arms = [ArmResults("a", "nvfp4"), ArmResults("b", "fp8_block"), ArmResults("c", "fp8"), ArmResults("d", "bf16")]
    assert [each.name for each in by_arm.in_order(arms)] == ["d", "c", "b", "a"]


def test_a_run_s_arrays_are_found_and_a_trace_that_failed_is_none(tmp_path: Path) -> None:
    made.write(tmp_path, [made.arm("bf16", TWO)])
    arrays = tmp_path / "arms" / "bf16" / "perplexity.npz"
    arrays.parent.mkdir(parents=True)
    made.scores().save(arrays)
    failed = {"shape": SHAPE, "status": "failed", "error": "no memory"}
    (tmp_path / f"kernels_bf16_sm90_{SHAPE}.json").write_text(json.dumps(failed))
    (found,) = by_arm.read(tmp_path)
    assert (found.arrays, found.kernels) == (arrays, {})


def test_folders_without_records_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no record .*give the --output_dir"):
        by_arm.read(tmp_path)
    with pytest.raises(UsageError, match="There is no folder"):
        by_arm.read(tmp_path / "absent")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("perf_bf16_sm90.json", "{", "is damaged"),
        ("perf_bf16_sm90.json", "\ud800", "is damaged"),
        ("perf_bf16_sm90.json", "[" * 100_000, "is damaged"),
        ("perf_bf16_sm90.json", "[]", "not a record of moe-eval perf .it is a list."),
        ("perf_bf16_sm90.json", "{}", "it has no status"),
        ("ppl_bf16_cpu.json", '{"schema": 2}', "has schema 2; this moe_eval reads schema 1"),
        (
            "kernels_bf16_cpu_b1_i2_o3.json",
            '{"phases": 1, "precision_seen": null, "contradiction": null}',
            "it.phases is a int",
        ),
    ],
)
def test_files_that_are_no_records_are_refused(tmp_path: Path, name: str, content: str, says: str) -> None:
    (tmp_path / name).write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(UsageError, match=says) as refused:
        by_arm.read(tmp_path)
    assert str(tmp_path / name) in str(refused.value)


def test_one_arm_from_two_machines_and_files_under_other_names_are_refused(tmp_path: Path) -> None:
    arms = [made.arm("bf16", TWO)]
    made.write(tmp_path, arms)
    made.write(tmp_path, arms, "sm100")
    with pytest.raises(UsageError, match=r"perf_bf16_sm100.json and perf_bf16_sm90.json are of the same arm"):
        by_arm.read(tmp_path)
    (tmp_path / "perf_bf16_sm100.json").rename(tmp_path / "perf_fp8_sm100.json")
    with pytest.raises(UsageError, match="is the record of bf16; give the file its name back"):
        by_arm.read(tmp_path)


def _spots(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(spot for key, each in inner for spot in _spots(each, (*path, key)))]


def _small() -> list[ArmResults]:
    base = made.scores()
    return [
        ArmResults(
            name,
            name,
            made.perf(name, {1: TWO[1]}, reference=reference),
            made.ppl(name, base, ("bf16", base)),
            {"b1_i512_o9": made.kernels(name, label=None)},
        )
        for name, reference in (("bf16", None), ("fp8", "bf16"))
    ]


_WHOLE = [{"perf": each.perf, "ppl": each.ppl, "kernels": dict(each.kernels)} for each in _small()]
_SPOTS = [spot for spot in _spots(_WHOLE) if len(spot) > 2]


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(_SPOTS), st.sampled_from([None, 1, 0.5, -1, "x", [], {}, True, "gone"]))
def test_a_record_with_anything_wrong_in_it_is_refused_or_compared(
    tmp_path: Path, spot: tuple[Any, ...], wrong: Any
) -> None:
    """Whatever stands anywhere in a record: one sentence, or a comparison, and never another exception."""
    broken = copy.deepcopy(_WHOLE)
    inner: Any = broken
    for key in spot[:-1]:
        inner = inner[key]
    if wrong == "gone":
        del inner[spot[-1]]
    else:
        inner[spot[-1]] = wrong
    for file in tmp_path.glob("*.json"):
        file.unlink()
    for name, raw in zip(("bf16", "fp8"), broken, strict=True):
        for kind in ("perf", "ppl"):
            (tmp_path / f"{kind}_{name}_sm90.json").write_text(json.dumps(raw.get(kind)))
        (tmp_path / f"kernels_{name}_sm90_b1_i512_o9.json").write_text(
            json.dumps(raw["kernels"].get("b1_i512_o9")) if isinstance(raw.get("kernels"), dict) else "{}"
        )
    said = None
    try:
        json.dumps(pairs.make(by_arm.read(tmp_path)), allow_nan=False)
    except UsageError as error:
        said = str(error)
    assert said is None or said.endswith(".")


def test_a_perplexity_that_is_no_number_is_missing(tmp_path: Path) -> None:
    base = made.scores()
    arms = [ArmResults(name, name, ppl=made.ppl(name, base, ("bf16", base))) for name in ("bf16", "fp8")]
    assert arms[1].ppl is not None
    made.write(tmp_path, [arms[0], ArmResults("fp8", "fp8", ppl={**arms[1].ppl, "perplexity": float("nan")})])
    found = pairs.make(by_arm.read(tmp_path))
    assert found["arms"][1]["perplexity"] is None
    assert found["pairs"][0]["quality"] is None
