"""Latency records of made-up arms: labels, floors by hand, and the notes that a reader needs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from moe_eval.checkpoint.geometry import Params
from moe_eval.data import workload
from moe_eval.evaluators import latency_record
from moe_eval.evaluators.latency_record import Context, Measured
from moe_eval.machine.hardware import Gpu, Machine
from moe_eval.machine.rates import Rates
from moe_eval.records import disk
from moe_eval.records.labels import ArmLabels, EngineFacts, Origin, Status
from moe_eval.records.latency import LatencyRecord, MemoryUse
from moe_eval.records.run import Schedule
from moe_eval.records.samples import Sample, Turn, WarmUp
from moe_eval.records.shape_latency import Routing
from tests.doubles.arm_process import FACTS
from tests.evaluators.conftest import TOY

WORK = workload.from_seed(0, workload.shapes([4, 1], 10, 5), 100)
GEOMETRY = replace(TOY, experts=128, params=Params(1280, 30, 7, 800, 800))
ENGINE = replace(
    FACTS,
    quant_algo="FP8",
    moe_backend_observed="CutlassFusedMoE",
    weight_bytes={"experts": 1280, "embedding": 1600, "other": 2000},
    kv_cache_dtype="bfloat16",
    gpus=1,
)
H100 = Gpu("NVIDIA H100 80GB HBM3", "9.0", 80 << 30, "GPU-0")
CONTEXT = Context(
    origin=Origin("0" * 32, {}, Machine("Linux", "3.12", "a CPU", 16, 1 << 30, (H100,), "580", "13")),
    workload=WORK,
    schedule=Schedule("turns", 3, 2, 5),
    fusion_disabled=True,
    geometry=GEOMETRY,
    rates=Rates(1e6, {"bfloat16": 1e12}, "one megabyte a second"),
)


def counted(distinct: float) -> dict[int, Routing]:
    """Routing by batch size in which decode steps read so many experts of 128."""
    load = ((3,) * 128,) * 2
    return {size: Routing(size, 128, 2, 4, distinct, 60.0, load, 128.0, 1.0) for size in (1, 4)}


def arm(name: str = "bf16", seconds: float = 1.0, engine: EngineFacts | None = None) -> Measured:
    """An arm whose calls last so long, a quarter of it for the first token."""
    sample = Sample(0.0, seconds, {"host": seconds / 4}, {"host": seconds})
    return Measured(
        name,
        name,
        Status.FINISHED,
        labels=ArmLabels(engine or replace(ENGINE, precision=name)),
        warm_ups={shape.name: [WarmUp((seconds,) * 9, "noise is steady")] for shape in WORK.shapes},
        loads={shape.name: [[sample, sample] for _ in range(3)] for shape in WORK.shapes},
        turns={shape.name: [Turn(0, (), (False,) * 6)] for shape in WORK.shapes},
        routing=counted(51.8),
    )


def recorded(measured: Measured, context: Context = CONTEXT) -> LatencyRecord:
    return latency_record.record(measured, context)


def test_labels_and_figures_of_the_first_shape_stand_at_the_top(tmp_path: Path) -> None:
    disk.write_record(tmp_path / "record.json", recorded(arm()))
    record = disk.read_record(tmp_path / "record.json", LatencyRecord, schemas=(2,), maker="moe-eval perf")
    assert record == recorded(arm()), "it is read back as it was"
    assert (record.precision, record.quant_algo, record.weights) == ("bf16", "FP8", "checkpoint")
    assert (record.sm_version, record.gpu_name) == ("9.0", "NVIDIA H100 80GB HBM3")
    assert (record.moe_backend, record.fusion_disabled) == ("CutlassFusedMoE", True)
    assert (record.batch_size, record.input_len, record.output_len) == (4, 10, 5)
    assert (record.num_iterations, record.warmup_iterations) == (6, (9,))
    assert (record.mean_latency_ms, record.std_latency_ms) == (1000.0, 0.0)
    assert (record.output_tokens_per_sec, record.prefill_tokens_per_sec) == pytest.approx((20.0, 160.0))
    assert record.status is Status.FINISHED
    assert [row.name for row in record.shapes] == ["b4_i10_o5", "b1_i10_o5"]
    assert [row.experts_per_layer_step for row in record.shapes] == [51.8, 51.8]
    assert record.workload is not None
    assert record.workload.digest == WORK.digest


@pytest.mark.parametrize("is_counted", [True, False])
def test_floors_follow_from_bytes_and_rates(is_counted: bool) -> None:
    """Everything is bound by one megabyte a second here."""
    measured = arm()
    if not is_counted:
        measured.routing, measured.no_routing = None, "not measured"
    record = recorded(measured)
    assert record.no_routing == (None if is_counted else "not measured")
    per_token = 2 * 8 * 2  # layers, values, bytes
    independent = 128 * (1 - (1 - 2 / 128) ** 4)
    distinct = 51.8 if is_counted else independent
    # steps 1 to 4 find 10 to 13 tokens in the cache of each of four sequences and write one more
    cache = 4 * (sum([10, 11, 12, 13]) / 4 + 1) * per_token
    moved = 2000 + 1280 * distinct / 128 + 1600 * 4 / 100 + cache
    step = record.shapes[0].floors.decode_step
    assert step is not None
    assert step.floor.bytes == pytest.approx(moved)
    assert step.predicted_ms == pytest.approx(1000 * moved / 1e6)
    assert step.measured_ms == pytest.approx(750 / 4)
    assert step.fraction == pytest.approx(step.predicted_ms / (step.measured_ms or 0))
    source = "counted" if is_counted else "independent draws"
    assert (step.floor.bound, step.floor.distinct_source) == ("memory", source)
    everything = 128 * (1 - (1 - 2 / 128) ** 40)
    moved = 2000 + 1280 * everything / 128 + 1600 * 40 / 100 + 40 * per_token
    prefill = record.shapes[0].floors.prefill
    assert prefill is not None
    assert (prefill.floor.bytes, prefill.measured_ms) == pytest.approx((moved, 250))


def test_gpus_that_share_a_model_are_that_much_faster_together() -> None:
    predicted = []
    for gpus in (1, 4):
        floor = recorded(arm(engine=replace(ENGINE, gpus=gpus))).shapes[0].floors.prefill
        assert floor is not None
        predicted.append(floor.predicted_ms)
    assert predicted[0] == pytest.approx(4 * predicted[1])


@pytest.mark.parametrize(
    ("context", "engine", "sentence"),
    [
        (replace(CONTEXT, geometry=None), ENGINE, "the sizes of X are not known"),
        (replace(CONTEXT, rates="no rates (why)"), ENGINE, "no rates (why)"),
        (CONTEXT, replace(ENGINE, kv_cache_dtype="int3"), "the width of a key-value cache of int3 is not"),
        (CONTEXT, replace(ENGINE, weight_bytes=None), "does not tell the bytes of the loaded weights"),
    ],
)
def test_a_floor_that_cannot_be_computed_is_a_sentence(context: Context, engine: EngineFacts, sentence: str) -> None:
    floors = recorded(arm(engine=engine), context).shapes[0].floors
    assert sentence in str(floors.no_floors)
    assert (floors.prefill, floors.decode_step) == (None, None)


def test_one_new_token_has_no_decode_step() -> None:
    work = workload.from_seed(0, workload.shapes([1], 10, 1), 100)
    name, measured = work.shapes[0].name, arm()
    for by_shape in (measured.loads, measured.warm_ups, measured.turns):
        by_shape[name] = by_shape.pop("b1_i10_o5")  # type: ignore[attr-defined]
    floors = recorded(measured, replace(CONTEXT, workload=work)).shapes[0].floors
    assert (floors.prefill is None, floors.decode_step) == (False, None)


def test_a_decode_step_that_was_not_measured_has_a_floor_and_no_share_of_it() -> None:
    reversed_calls, measured = Sample(0.0, 1.0, {"host": 1.1}, {"host": 1.0}), arm()
    measured.loads = {shape.name: [[reversed_calls, reversed_calls]] * 3 for shape in WORK.shapes}
    row = recorded(measured).shapes[0]
    step = row.floors.decode_step
    assert step is not None
    assert step.predicted_ms > 0
    assert (step.measured_ms, step.fraction) == (None, None)
    assert row.notes[0].startswith("no time per token: by host, 6 of 6 iterations")


def test_a_source_that_one_sample_lacks_counts_for_none() -> None:
    """The engine timed all of the first iteration's requests and not of a later one's."""
    both = Sample(0.0, 1.0, {"host": 0.2, "engine": 0.1}, {"host": 1.0, "engine": 0.9}, 0.1)
    measured, host = arm(), Sample(0.0, 1.0, {"host": 0.2}, {"host": 1.0})
    measured.loads = {shape.name: [[both, host]] * 3 for shape in WORK.shapes}
    row = recorded(measured).shapes[0]
    assert set(row.figures.sources) == {"host"}
    assert row.metrics.ttft_ms is not None
    assert row.metrics.ttft_ms.samples == pytest.approx((200,) * 6)


def test_low_clocks_and_warm_ups_that_did_not_settle_are_notes() -> None:
    measured = arm()
    measured.turns["b4_i10_o5"] = [Turn(load, (), (load == 1, load == 2)) for load in range(3)]
    measured.warm_ups["b4_i10_o5"] = [WarmUp((1.0,) * 20, "it did not settle")]
    first, second = recorded(measured).shapes
    assert first.notes == (
        "2 of 6 iterations ran at under 75 % of the GPU's default clock",
        "1 of 1 warm-ups ended without having settled",
    )
    assert second.notes == ()


@pytest.mark.parametrize(("step", "moved"), [(-0.003, "fell"), (0.003, "rose")])
def test_a_trend_within_loads_is_a_note_with_its_size(step: float, moved: str) -> None:
    measured = arm()
    slow = [Sample(0.0, 1.0, {"host": 0.2}, {"host": 1 + step * at}) for at in range(5)]
    measured.loads["b4_i10_o5"] = [slow, slow]
    first, second = recorded(measured).shapes
    assert first.notes[-1] == f"end-to-end times {moved} by 1.2 % within a load: the warm-up was too short"
    assert second.notes == ()


@pytest.mark.parametrize("nvml", [None, "NVML lost GPU-x."])
def test_clocks_that_nobody_saw_are_noted_once(nvml: str | None) -> None:
    measured = arm()
    measured.nvml = nvml
    measured.turns["b4_i10_o5"] = [Turn(load, (), (None, False)) for load in range(3)]
    record = recorded(measured)
    assert record.nvml == nvml
    notes = [note.split(":")[0] for note in record.shapes[0].notes]
    assert notes == ([] if nvml else ["whether the clock was low is not known of 3 of 6 iterations"])


CUDA = replace(ENGINE, device="cuda:0", precision="nvfp4")
GRAPHS = replace(CUDA, cuda_graph_batch_sizes=(1, 2, 8))


@pytest.mark.parametrize(
    ("engine", "sentence"),
    [
        (replace(CUDA, cuda_graph_batch_sizes=()), "decode ran without CUDA graphs"),
        (
            replace(GRAPHS, cuda_graph_padding=False),
            "decode ran without CUDA graphs, of which none is for 4 sequences and none is padded to",
        ),
        (replace(GRAPHS, cuda_graph_padding=True), None),
        (CUDA, None),
        (replace(CUDA, device="cpu", cuda_graph_batch_sizes=()), None),
        (
            replace(CUDA, max_step_tokens=39),
            "reads 39 tokens a step and the prompts have 40, so they are read over 2 steps",
        ),
        (
            replace(CUDA, cuda_graph_batch_sizes=(1, 2)),
            "decode ran without CUDA graphs, of which the largest is for 2 sequences",
        ),
        (replace(ENGINE, precision="nvfp4-w4a16"), "the engine chose kernels of nvfp4-w4a16 where nvfp4 was planned"),
        (replace(CUDA, max_step_tokens=40, cuda_graph_batch_sizes=(1, 4)), None),
    ],
)
def test_steps_and_kernels_that_are_not_what_they_seem_are_notes(engine: EngineFacts, sentence: str | None) -> None:
    record = recorded(arm("nvfp4", engine=engine))
    assert [sentence in note for note in record.shapes[0].notes if sentence] == ([True] if sentence else [])
    assert bool(record.shapes[0].notes) == (sentence is not None)
    assert record.precision == engine.precision
    assert (record.arm, record.precision_planned) == ("nvfp4", "nvfp4")


def test_memory_is_of_every_load() -> None:
    measured = arm()
    measured.memory = (MemoryUse(1 << 30, 4 << 30, 2), MemoryUse(None, None))
    assert recorded(measured).memory == measured.memory


def test_an_arm_that_failed_early_has_a_record_without_figures() -> None:
    record = recorded(Measured("fp8", "fp8", Status.FAILED, "out of memory"))
    assert (record.status, record.error, record.shapes) == (Status.FAILED, "out of memory", ())
    assert record.mean_latency_ms is None


def test_an_arm_that_failed_later_keeps_what_it_has() -> None:
    measured = arm("fp8", 0.5)
    measured.loads["b4_i10_o5"] = [*measured.loads["b4_i10_o5"][:2], []]
    del measured.loads["b1_i10_o5"]
    (row,) = recorded(measured).shapes
    assert (row.num_iterations, [len(load) for load in row.loads]) == (4, [2, 2, 0])


def test_a_skipped_precision_has_its_reason() -> None:
    skipped = Measured("nvfp4", "nvfp4", Status.SKIPPED, "needs SM100")
    record = recorded(skipped, replace(CONTEXT, workload=None))
    assert (record.status, record.error, record.arm) == (Status.SKIPPED, "needs SM100", "nvfp4")
    assert (record.sm_version, record.workload, record.fusion_disabled) == ("9.0", None, True)
