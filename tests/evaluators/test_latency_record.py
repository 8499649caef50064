"""Records and the table of made-up arms: what is fair to compare, floors by hand, and what a reader is told."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from moe_eval.runner.interleave import ArmRun, Schedule
from moe_eval.runner.speed_record import Context

from moe_eval.checkpoint.geometry import Geometry, Params
from moe_eval.data import workload
from moe_eval.engines.base import EngineSettings
from moe_eval.evaluators.latency import Sample
from moe_eval.evaluators.routing import Routing
from moe_eval.machine.rates import Rates
from moe_eval.report import speed_table
from moe_eval.runner import speed_record
from moe_eval.runner.arm_process import Load

WORK = workload.from_seed(0, workload.shapes([4, 1], 10, 5), 100)
GEOMETRY = Geometry(
    layers=2, moe_layers=1, experts=128, top_k=2, hidden=8, heads=2, kv_heads=1, head_dim=4, value_dim=4, kv_values=8,
    vocabulary=100, tied=False, expert_params=10, params=Params(1280, 30, 7, 800, 800),
)  # fmt: skip
ENGINE = {
    "name": "made up", "quant_algo": "FP8", "weights": "checkpoint", "moe_backend_observed": "CutlassFusedMoE",
    "weight_bytes": {"experts": 1280, "embedding": 1600, "other": 2000}, "kv_cache_dtype": "bfloat16", "gpus": 1,
    "hub_token": "hunter2",
}  # fmt: skip
CONTEXT = Context(
    run_id="0123456789abcdef0123456789abcdef",
    workload=WORK,
    schedule=Schedule("interleaved", 3, 2, 5),
    machine={"gpus": [{"name": "NVIDIA H100 80GB HBM3", "capability": "9.0"}]},
    versions={},
    git=None,
    asked={},
    fusion_disabled=True,
    geometry=GEOMETRY,
    rates=Rates(1e6, {"bfloat16": 1e12}, "one megabyte a second"),
)


def counted(distinct: float) -> dict[str, Any]:
    """Routing by batch size in which decode steps read so many experts of 128."""
    load = np.full((2, 128), 3)
    return {str(size): Routing(size, 128, 2, 4, distinct, 60.0, load, 128.0, 1.0).to_json() for size in (1, 4)}


def arm(name: str = "bf16", seconds: float = 1.0, **more: Any) -> ArmRun:
    """An arm whose calls last so long, a quarter of it for the first token."""
    one = Sample(0.0, seconds, {"host": seconds / 4}, {"host": seconds})
    run = ArmRun(name, name, Load("made up", EngineSettings("x"), "x"), "finished", labels={"engine": dict(ENGINE)})
    run.warm_ups = {shape.name: [{"seconds": [seconds] * 9, "ended": "noise is steady"}] for shape in WORK.shapes}
    run.blocks = {shape.name: [[one, one]] * 3 for shape in WORK.shapes}
    run.gpu = {shape.name: [{"block": 0, "gpus": [], "slow_samples": [False] * 6}] for shape in WORK.shapes}
    run.routing = counted(51.8)
    for key, value in more.items():
        setattr(run, key, value)
    return run


def recorded(*runs: ArmRun, context: Context = CONTEXT) -> list[dict[str, Any]]:
    """Records as they are read back from disk, the first arm as the reference."""
    found = [speed_record.record(run, context, None if run is runs[0] else runs[0]) for run in runs]
    again: list[dict[str, Any]] = json.loads(json.dumps(found))
    return again


def cells(table: str) -> list[dict[str, str]]:
    """The table's rows by heading; the last heading is the speed-up's interval."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    heads = [*rows[0][:-1], "speed-up interval"]
    return [dict(zip(heads, row, strict=True)) for row in rows[2:]]


def test_labels_and_plain_figures_stand_at_the_top() -> None:
    (record,) = recorded(arm())
    expected = {
        "precision": "bf16", "quant_algo": "FP8", "sm_version": "9.0", "gpu_name": "NVIDIA H100 80GB HBM3",
        "moe_backend": "CutlassFusedMoE", "fusion_disabled": True, "batch_size": 4, "input_len": 10, "output_len": 5,
        "num_iterations": 6, "warmup_iterations": [9], "mean_latency_ms": 1000.0, "std_latency_ms": 0.0,
        "output_tokens_per_sec": 20.0, "prefill_tokens_per_sec": 160.0, "status": "finished", "weights": "checkpoint",
    }  # fmt: skip
    assert {key: record[key] for key in expected} == expected
    assert [row["name"] for row in record["shapes"]] == ["b4_i10_o5", "b1_i10_o5"]
    assert record["workload"]["digest"] == WORK.digest
    assert "hunter2" not in json.dumps(record)


def test_a_faster_arm_with_the_same_routing_is_faster() -> None:
    reference, fast = recorded(arm(), arm("fp8", 0.5, routing=counted(51.0)))
    assert reference["shapes"][0]["versus_reference"] is None
    versus = fast["shapes"][0]["versus_reference"]
    assert (versus["fair"], versus["unfair_because"], versus["unchecked_because"]) == (True, None, None)
    assert versus["e2e_ms"]["value"] == pytest.approx(2.0)
    table = speed_table.render([reference, fast])
    assert [row["speed-up"] for row in cells(table)] == ["reference", "2.000x", "reference", "2.000x"]
    assert cells(table)[1]["speed-up interval"] == "2.000 to 2.000"
    assert [row["experts"] for row in cells(table)[:2]] == ["51.8", "51.0"]


def test_an_interval_that_ends_near_one_is_told_to_the_digit_that_shows_its_side() -> None:
    reference, fast = recorded(arm(), arm("fp8", 0.5))
    for row, ends in zip(fast["shapes"], ((1.0003, 1.0045), (0.99996, 1.0045)), strict=True):
        row["versus_reference"]["e2e_ms"] |= {"value": 1.0024, "low": ends[0], "high": ends[1]}
    intervals = [row["speed-up interval"] for row in cells(speed_table.render([reference, fast]))]
    assert intervals[1::2] == ["1.0003 to 1.0045", "0.99996 to 1.00450"]


def test_an_arm_whose_routing_collapsed_gets_no_verdict() -> None:
    """Dummy weights once sent an FP8 arm through 15 experts where the BF16 one read 51.8: a speed-up of nothing."""
    reference, fast = recorded(arm(), arm("fp8", 0.5, routing=counted(15.0)))
    versus = fast["shapes"][0]["versus_reference"]
    assert versus["fair"] is False
    assert versus["unfair_because"].startswith("bf16 reads 51.8 experts per layer and step and fp8 15.0")
    table = speed_table.render([reference, fast])
    assert [row["speed-up"] for row in cells(table)] == ["reference", "void", "reference", "void"]
    assert f"fp8 at batch 4: no verdict, {versus['unfair_because']}." in table
    assert "2.000" not in table


@pytest.mark.parametrize("which", [0, 1])
def test_routing_that_nobody_counted_is_a_sentence(which: int) -> None:
    runs = [arm(), arm("fp8", 0.5)]
    runs[which].routing = "not measured: the engine does not tell"
    reference, fast = recorded(*runs)
    versus = fast["shapes"][0]["versus_reference"]
    assert (versus["fair"], versus["unfair_because"]) == (None, None)
    assert versus["unchecked_because"] == f"{runs[which].name}: not measured: the engine does not tell"
    table = speed_table.render([reference, fast])
    assert f"Fairness of routing was not checked ({versus['unchecked_because']})." in table
    assert cells(table)[1]["speed-up"] == "2.000x"


@pytest.mark.parametrize("counts", [True, False])
def test_floors_follow_from_bytes_and_rates(counts: bool) -> None:
    """Everything is bound by one megabyte a second here."""
    (record,) = recorded(arm(routing=counted(51.8) if counts else "not measured"))
    per_token = 2 * 8 * 2  # layers, values, bytes
    independent = 128 * (1 - (1 - 2 / 128) ** 4)
    distinct = 51.8 if counts else independent
    # steps 1 to 4 find 10 to 13 tokens in the cache of each of four sequences and write one more
    cache = 4 * (sum([10, 11, 12, 13]) / 4 + 1) * per_token
    moved = 2000 + 1280 * distinct / 128 + 1600 * 4 / 100 + cache
    step = record["shapes"][0]["floors"]["decode_step"]
    assert step["bytes"] == pytest.approx(moved)
    assert step["predicted_ms"] == pytest.approx(1000 * moved / 1e6)
    assert step["measured_ms"] == pytest.approx(750 / 4)
    assert step["fraction_of_floor"] == pytest.approx(step["predicted_ms"] / step["measured_ms"])
    assert (step["bound"], step["distinct_source"]) == ("memory", "counted" if counts else "independent draws")
    table = cells(speed_table.render([record]))[0]
    assert table["of floor"] == f"{100 * step['fraction_of_floor']:.0f} %"
    everything = 128 * (1 - (1 - 2 / 128) ** 40)
    moved = 2000 + 1280 * everything / 128 + 1600 * 40 / 100 + 40 * per_token
    prefill = record["shapes"][0]["floors"]["prefill"]
    assert (prefill["bytes"], prefill["measured_ms"]) == pytest.approx((moved, 250))


def test_gpus_that_share_a_model_are_that_much_faster_together() -> None:
    one, four = recorded(arm(), arm("fp8", labels={"engine": {**ENGINE, "gpus": 4}}))
    parts = [record["shapes"][0]["floors"]["prefill"]["predicted_ms"] for record in (one, four)]
    assert parts[0] == pytest.approx(4 * parts[1])


@pytest.mark.parametrize(
    ("context", "engine", "said"),
    [
        (replace(CONTEXT, geometry=None), ENGINE, "sizes of this architecture are not known"),
        (replace(CONTEXT, rates="no rates (why)"), ENGINE, "no rates (why)"),
        (CONTEXT, {**ENGINE, "kv_cache_dtype": "fp8_ds_mla"}, "the width of a key-value cache of fp8_ds_mla is not"),
        (CONTEXT, {**ENGINE, "weight_bytes": None}, "does not tell the bytes of the loaded weights"),
    ],
)
def test_a_floor_that_cannot_be_computed_is_a_sentence(context: Context, engine: dict[str, Any], said: str) -> None:
    (record,) = recorded(arm(labels={"engine": engine}), context=context)
    assert said in record["shapes"][0]["floors"]
    assert cells(speed_table.render([record]))[0]["of floor"] == "-"


def test_one_new_token_has_no_decode_step() -> None:
    work = workload.from_seed(0, workload.shapes([1], 10, 1), 100)
    name = work.shapes[0].name
    run = arm()
    run.blocks, run.warm_ups, run.gpu = ({name: each["b1_i10_o5"]} for each in (run.blocks, run.warm_ups, run.gpu))
    (record,) = recorded(run, context=replace(CONTEXT, workload=work))
    assert set(record["shapes"][0]["floors"]) == {"prefill"}
    assert cells(speed_table.render([record]))[0]["TPOT ms"] == "-"


def test_a_decode_step_that_was_not_measured_has_a_floor_and_no_share_of_it() -> None:
    turned = Sample(0.0, 1.0, {"host": 1.1}, {"host": 1.0})
    (record,) = recorded(arm(blocks={shape.name: [[turned, turned]] * 3 for shape in WORK.shapes}))
    row = record["shapes"][0]
    step = row["floors"]["decode_step"]
    assert step["predicted_ms"] > 0
    assert (step["measured_ms"], step["fraction_of_floor"]) == (None, None)
    table = speed_table.render([record])
    assert (cells(table)[0]["TPOT ms"], cells(table)[0]["of floor"]) == ("-", "-")
    assert "bf16 at batch 4: no time per token: by host, 6 of 6 iterations" in table


def mixed() -> Sequence[list[Sample]]:
    """The engine timed all of the first iteration's requests and not of a later one's."""
    both = Sample(0.0, 1.0, {"host": 0.2, "engine": 0.1}, {"host": 1.0, "engine": 0.9}, 0.1)
    return [[both, Sample(0.0, 1.0, {"host": 0.2}, {"host": 1.0})]] * 3


def test_a_source_that_one_sample_lacks_counts_for_none() -> None:
    (record,) = recorded(arm(blocks={shape.name: mixed() for shape in WORK.shapes}))
    row = record["shapes"][0]
    assert set(row["sources"]) == {"host"}
    assert row["metrics"]["ttft_ms"]["samples"] == pytest.approx([200] * 6)


def test_the_reader_is_told_of_low_clocks_and_of_warm_ups_that_did_not_settle() -> None:
    run = arm()
    run.gpu["b4_i10_o5"] = [{"block": at, "gpus": [], "slow_samples": [at == 1, at == 2]} for at in range(3)]
    run.warm_ups["b4_i10_o5"] = [{"seconds": [1.0] * 20, "ended": "it did not settle"}]
    table = speed_table.render(recorded(run))
    assert "bf16 at batch 4: 2 of 6 iterations ran at under 75 % of the GPU's default clock." in table
    assert "bf16 at batch 4: 1 of 1 warm-ups ended without having settled." in table
    assert "at batch 1" not in table


@pytest.mark.parametrize("blind", [None, "NVML lost GPU-x."])
def test_clocks_that_nobody_saw_are_told_of_once(blind: str | None) -> None:
    run = arm(blind=blind)
    run.gpu["b4_i10_o5"] = [{"block": at, "gpus": [], "slow_samples": [None, False]} for at in range(3)]
    (record,) = recorded(run)
    assert record["nvml"] == blind
    notes = [note.split(":")[0] for note in record["shapes"][0]["notes"]]
    assert notes == ([] if blind else ["whether the clock was low is not known of 3 of 6 iterations"])


CUDA = {"device": "cuda:0"}


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ({**CUDA, "cuda_graph_batch_sizes": []}, "decode ran without CUDA graphs"),
        (
            {**CUDA, "cuda_graph_batch_sizes": [1, 2, 8], "cuda_graph_padding": False},
            "decode ran without CUDA graphs, of which none is for 4 sequences and none is padded to",
        ),
        ({**CUDA, "cuda_graph_batch_sizes": [1, 2, 8], "cuda_graph_padding": True}, None),
        ({**CUDA, "cuda_graph_batch_sizes": None}, None),
        ({"device": "cpu", "cuda_graph_batch_sizes": []}, None),
        ({"max_step_tokens": 39}, "reads 39 tokens a step and the prompts have 40, so they are read over 2 steps"),
        (
            {**CUDA, "cuda_graph_batch_sizes": [1, 2]},
            "decode ran without CUDA graphs, of which the largest is for 2 sequences",
        ),
        ({"precision": "nvfp4-w4a16"}, "the engine chose kernels of nvfp4-w4a16 where nvfp4 was planned"),
        ({**CUDA, "max_step_tokens": 40, "cuda_graph_batch_sizes": [1, 4], "precision": "nvfp4"}, None),
    ],
)
def test_steps_and_kernels_that_are_not_what_they_seem_are_told_of(labels: dict[str, Any], said: str | None) -> None:
    (record,) = recorded(arm("nvfp4", labels={"engine": {**ENGINE, **labels}}))
    assert [said in note for note in record["shapes"][0]["notes"]] == ([True] if said else [])
    assert record["precision"] == labels.get("precision", "nvfp4")
    assert record["arm"] == "nvfp4"


def test_memory_that_an_arm_left_behind_is_told_of() -> None:
    kept = [{"before": 1 << 30, "after": 4 << 30}, {"before": None, "after": None}]
    assert "bf16 left 3.0 GiB of GPU memory in use" in speed_table.render(recorded(arm(memory=kept)))


def test_memory_that_arms_left_behind_together_is_told_of_once_and_blamed_on_none() -> None:
    kept = [{"before": 1 << 30, "after": 4 << 30, "together": 2}]
    told = speed_table.render(recorded(arm(memory=kept), arm("fp8", memory=kept)))
    assert told.count("GiB of GPU memory") == 1
    assert "The arms together left 3.0 GiB of GPU memory in use when their processes had ended." in told


@pytest.mark.parametrize("budgets", [(20, 40), (40, 13), (20, 39), (13, 13), (None, 40), (None, 39)])
def test_arms_that_read_prompts_over_other_numbers_of_steps_get_no_verdict(budgets: tuple[int | None, ...]) -> None:
    """40 prompt tokens at batch 4, and 10 at batch 1."""
    engines = [{"engine": {**ENGINE, "max_step_tokens": each}} for each in budgets]
    runs = [arm(labels=engines[0]), arm("fp8", 0.5, labels=engines[1], routing=counted(51.8))]
    for row in recorded(*runs)[1]["shapes"]:
        steps = [len(range(0, row["batch_size"] * 10, each or 1000)) for each in budgets]
        assert row["versus_reference"]["fair"] is (steps[0] == steps[1])
        if steps[0] != steps[1]:
            said = f"bf16 reads 40 prompt tokens over {steps[0]} steps and fp8 over {steps[1]}"
            assert str(row["versus_reference"]["unfair_because"]).startswith(said)


def test_the_table_promises_no_more_warm_up_than_every_arm_had() -> None:
    few = {shape.name: [{"seconds": [1.0] * 6, "ended": "noise is steady"}] for shape in WORK.shapes}
    assert "after 6 or more of warm-up" in speed_table.render(recorded(arm(), arm("fp8", warm_ups=few)))


def test_an_arm_that_failed_early_has_a_record_without_figures() -> None:
    failed = ArmRun("fp8", "fp8", Load("x", EngineSettings("x"), "x"), "failed", "out of memory")
    _, record = recorded(arm(), failed)
    assert (record["status"], record["error"], record["shapes"]) == ("failed", "out of memory", [])
    assert record["mean_latency_ms"] is None


def test_blocks_of_an_arm_that_failed_later_are_compared_as_far_as_they_go() -> None:
    fast = arm("fp8", 0.5)
    fast.blocks["b4_i10_o5"] = [*fast.blocks["b4_i10_o5"][:2], []]
    del fast.blocks["b1_i10_o5"]
    record = recorded(arm(), fast)[1]
    (row,) = record["shapes"]
    assert (row["num_iterations"], row["versus_reference"]["e2e_ms"]["blocks"]) == (4, 2)
    assert math.isclose(row["versus_reference"]["e2e_ms"]["value"], 2.0)


def test_a_skipped_precision_has_its_reason() -> None:
    record = speed_record.skipped("nvfp4", "needs SM100", replace(CONTEXT, workload=None))
    assert (record["status"], record["error"], record["arm"]) == ("skipped", "needs SM100", "nvfp4")
    assert (record["sm_version"], record["workload"], record["fusion_disabled"]) == ("9.0", None, True)
