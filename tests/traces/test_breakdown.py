"""Steps, categories and times of traces whose every figure is known."""

from __future__ import annotations

import random
import statistics
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_eval.evaluators import kernels_record
from moe_eval.traces import breakdown, kernel_table, roles
from moe_eval.traces import steps as forward_steps
from moe_eval.traces.breakdown import Breakdown
from moe_eval.traces.kernel_table import Trace
from moe_eval.traces.roles import Roles
from moe_eval.traces.taxonomy import CATEGORIES
from tests.doubles import timeline
from tests.doubles.timeline import Timeline, generation


def step_ranges(recording: Timeline, style: str) -> list[tuple[str, int, int, int]]:
    """The engine's own ranges around the launches of every step but its sampling."""
    result = []
    for at, (phase, begin, _) in enumerate(recording.steps):
        prefill = phase == "prefill"
        text = {
            "trtllm": f"[Executor] _forward_step {at}: {int(prefill)} ctx reqs, {int(not prefill)} gen reqs",
            "trtllm-2026": f"_forward_step {at}: {int(prefill)} ctx reqs, {512 * prefill} ctx tokens, "
            f"{int(not prefill)} gen reqs",
            "vllm": "execute_context_1(512)_generation_0(0)" if prefill else "execute_context_0(0)_generation_1(1)",
            "vllm-0.10": f"execute_new_{int(prefill)}_cached_{int(not prefill)}",
            "vllm-scopes": "gpu_model_runner: forward",
            "sglang": "step[EXTEND bs=1 toks=512]" if prefill else "step[DECODE bs=1]",
        }[style]
        result.append((text, begin - 9500, begin - 9100 + 20_000, 7))
    return result


def counted(result: Breakdown) -> list[tuple[str, int, dict[str, int]]]:
    """Name, steps, and steps that are set aside, of every phase."""
    return [(name, phase.steps, dict(phase.set_aside)) for name, phase in result.phases.items()]


def assigned(recording: Timeline, trace: Trace | None = None) -> Roles:
    """The roles of its rows, which are those that they were meant to have."""
    result = roles.assign(trace or recording.trace())
    assert [CATEGORIES[number] for number in result.category] == recording.meant
    return result


def step_counts(result: Breakdown) -> list[tuple[str, int]]:
    return [(name, phase.steps) for name, phase in result.phases.items()]


def expected(recording: Timeline, phase: str) -> dict[str, float]:
    """Medians of ms by category over the steps of a phase, from the list that the trace was made of."""
    by_step = []
    for name, begin, end in recording.steps:
        if name == phase:
            sums: dict[str, float] = defaultdict(float)
            for row, meant in zip(recording.rows, recording.meant, strict=True):
                if begin <= int(row["start_ns"]) < end:
                    sums[meant] += int(row["duration_ns"]) / 1e6
            by_step.append(sums)
    categories = {category for sums in by_step for category in sums}
    return {category: statistics.median(sums[category] for sums in by_step) for category in categories}


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("style", [None, "trtllm", "trtllm-2026", "vllm", "vllm-0.10", "vllm-scopes", "sglang"])
@pytest.mark.parametrize("fp8", [False, True])
def test_every_step_is_found_and_its_time_is_that_of_the_list(style: str | None, graph: bool, fp8: bool) -> None:
    recording = generation(decode=6, graph=graph, fp8=fp8)
    result = breakdown.make(recording.trace(ranges=step_ranges(recording, style) if style else ()))
    assert counted(result) == [("prefill", 1, {}), ("decode", 6, {})]
    sources = {None: "sampling after every step", "vllm-scopes": "step ranges without a phase"}
    assert result.steps_source == sources.get(style, "step ranges")
    for phase_name, phase in result.phases.items():
        want = expected(recording, phase_name)
        assert {category: time.ms for category, time in phase.categories.items()} == pytest.approx(want)
        assert phase.total_ms == pytest.approx(sum(want.values()))
        assert phase.overlap_ms == pytest.approx(0)
        assert phase.moe_layers == 3
        begin, end = next((begin, end) for name, begin, end in recording.steps if name == phase_name)
        assert phase.span_ms == pytest.approx((end - begin) / 1e6)
        assert phase.wall_ms == pytest.approx((end - begin + timeline.GAP_NS + 20_000) / 1e6)
    decode = result.phases["decode"]
    assert decode.categories["gate_gemm"].launches_per_layer == 2
    assert decode.categories["expert_gemm"].launches == 6
    f = expected(recording, "decode")["expert_gemm"]
    busy, wall = decode.busy_ms or 0, decode.wall_ms or 0
    assert decode.ceiling.if_free == pytest.approx(1 / (1 - f / busy))
    assert decode.ceiling.at(2.0) == pytest.approx(1 / (1 - f / busy + f / busy / 2)) == decode.ceiling.if_twice_as_fast
    assert decode.wall_ceiling is not None
    assert decode.wall_ceiling.if_free == pytest.approx(1 / (1 - f / wall))


def test_every_row_is_given_the_role_that_it_was_meant_to_have() -> None:
    recording = generation(decode=3, fp8=True)
    assert assigned(recording).gates == "by the order of launches"


class Shared(Timeline):
    """Layers with a shared expert, before or after the gate, or on a side stream beside it."""

    place = "after"

    def layer(self, number: int, tokens: int, *, fp8: bool, split_k: bool, scale: int, **columns: int | bool) -> None:
        self.run("dense_gemm", timeline.QKV, 3000)
        self.run("attention", timeline.FLASH, 4000)
        self.run("dense_gemm", timeline.O_PROJ, 2000)
        if self.place == "before":
            self._shared()
        self.run("gate_gemm", timeline.GATE, 1100)
        if self.place == "side":
            self.clock_ns -= 1000
            self._shared(stream=9)
        if self.place == "after":
            self._shared()
        self.run("routing_permute", timeline.TOPK, 900)
        self.run("expert_gemm", timeline.MOE, 9000)

    def _shared(self, **columns: int) -> None:
        self.run("dense_gemm", timeline.QKV, 2000, **columns)
        self.run("activation", timeline.SILU, 500, **columns)
        self.run("dense_gemm", timeline.QKV, 1500, **columns)


@pytest.mark.parametrize("place", ["before", "after", "side"])
def test_a_shared_expert_s_gemms_are_not_the_gate_s(place: str) -> None:
    recording = Shared()
    recording.place = place
    recording.step("prefill", 512)
    recording.step("decode", 1)
    assigned(recording)


def test_gates_that_a_name_or_a_range_tells_in_some_steps_are_found_in_the_others() -> None:
    recording = generation(decode=3, split_k=False)
    for row in recording.rows:
        if row["text"] == timeline.GATE and int(row["start_ns"]) > recording.steps[0][2]:
            row["text"] = "void vllm::moe::router_gemm_kernel<8>"
    assert assigned(recording).gates == "by name and by the order of launches"


def test_without_a_second_gemm_before_the_routing_no_gate_is_made_up() -> None:
    recording = generation(decode=2)
    keep = [at for at, row in enumerate(recording.rows) if row["text"] not in (timeline.GATE, timeline.O_PROJ)]
    result = roles.assign(recording.trace(order=keep))
    assert "gate_gemm" not in {CATEGORIES[each] for each in result.category}
    assert result.gates == "not told apart"


def test_softmax_and_top_k_of_a_router_are_not_the_sampler_s() -> None:
    recording = generation(decode=2)
    softmax = "void at::native::(anonymous namespace)::cunn_SoftMaxForward<8, float, float, float>"
    for row in recording.rows:
        if row["text"] == timeline.TOPK:
            row["text"] = softmax
    assigned(recording)


def test_module_ranges_tell_layers_gates_and_experts_of_plain_gemms() -> None:
    recording = Timeline()
    modules = []
    recording.run("memory", timeline.UPLOAD, 800)
    for layer in range(2):
        for part, meant in (("self_attn", "dense_gemm"), ("mlp.gate", "gate_gemm"), ("mlp.experts", "expert_gemm")):
            begin = recording.clock_ns
            recording.run(meant, timeline.QKV, 1000 + layer)
            text = f"{{'Module': 'Qwen3MoeForCausalLM.model.layers.{layer}.{part}', 'Inputs': [[1, 2]]}}"
            modules.append((text, begin - 9100, begin - 8900, 7))
    recording.run("dense_gemm", timeline.QKV, 5000)
    trace = recording.trace(ranges=modules)
    assert assigned(recording, trace).layer.tolist() == [-1, 0, 0, 0, 1, 1, 1, -1]
    (phase,) = breakdown.make(trace).phases.values()
    assert phase.layers_ms == {0: pytest.approx(0.003), 1: pytest.approx(0.003003)}


def test_a_graph_s_nodes_are_attributed_by_when_they_were_captured() -> None:
    trace = timeline.trace_of(
        [timeline.QKV] * 2,
        [("model.layers.5.mlp.gate", 100, 200, 1)],
        start_ns=[5000, 9000],
        duration_ns=[100, 100],
        launch_ns=[4000, 4000],
        launch_thread=[1, 1],
        captured_ns=[150, 950],
        captured_thread=[1, 1],
        replayed=[True, True],
    )
    assert roles.assign(trace).layer.tolist() == [5, -1]


def test_ragged_steps_and_steps_far_from_the_others_are_set_aside_and_counted() -> None:
    recording = generation(decode=8)
    recording.step("decode", 1, layers=1)
    slow = next(at for at, row in enumerate(recording.rows) if int(row["start_ns"]) > recording.steps[3][1])
    recording.rows[slow + 1]["duration_ns"] = 900_000
    for row in recording.rows[slow + 2 :]:
        row["start_ns"] = int(row["start_ns"]) + 900_000
    decode = breakdown.make(recording.trace()).phases["decode"]
    assert (decode.steps, decode.set_aside) == (7, {"ragged": 1, "far from the others": 1})


def test_what_an_overlap_scheduler_launches_early_belongs_to_the_step_that_launched_it() -> None:
    """The upload of a step runs on a stream of its own in the middle of the step before."""
    recording = generation(decode=6, graph=True)
    ranges = []
    for at, (text, begin, *_) in enumerate(step_ranges(recording, "sglang")):
        _, first, last = recording.steps[at]
        launched = begin if at == 0 else sum(recording.steps[at - 1][1:]) // 2
        ranges.append((text, launched, launched + 3000, 7))
        for row in recording.rows:
            if first <= int(row["start_ns"]) < last:
                row["launch_ns"] = launched + 1000
                if at and row["text"] == timeline.UPLOAD:
                    row["start_ns"] = launched + 2000
    result = breakdown.make(recording.trace(ranges=ranges))
    assert counted(result) == [("prefill", 1, {}), ("decode", 6, {})]
    for phase_name, phase in result.phases.items():
        assert phase.moe_layers == 3
        assert (phase.busy_ms or 0) < (phase.span_ms or 0) < (phase.wall_ms or 0)
        for category in ("expert_gemm", "attention", "sampling"):
            assert phase.categories[category].ms == pytest.approx(expected(recording, phase_name)[category])


def test_sglang_s_verification_of_drafts_is_a_decode_step() -> None:
    recording = generation(decode=5, graph=True)
    ranges = [(text.replace("DECODE", "TARGET_VERIFY"), *rest) for text, *rest in step_ranges(recording, "sglang")]
    result = breakdown.make(recording.trace(ranges=ranges))
    assert step_counts(result) == [("prefill", 1), ("decode", 5)]


@pytest.mark.parametrize(("outer", "inner"), [("vllm", "sglang"), ("vllm", "vllm-scopes"), ("vllm-scopes", None)])
def test_a_step_that_is_marked_twice_is_one_step(outer: str, inner: str | None) -> None:
    recording = generation(decode=5)
    around = step_ranges(recording, outer)
    if inner is None:
        around = [("execute_model", *rest) for _, *rest in around]
    inside = [  # after the inputs' upload
        (text, start + 1000, end, thread) for text, start, end, thread in step_ranges(recording, inner or outer)
    ]
    result = breakdown.make(recording.trace(ranges=around + inside))
    assert counted(result) == [("prefill", 1, {}), ("decode", 5, {})]


def test_drafts_of_a_speculating_engine_do_not_pass_for_its_steps() -> None:
    recording = Timeline()
    recording.step("prefill", 512, layers=6)
    for _ in range(5):
        recording.step("decode", 4, layers=6, graph=True)
        for _ in range(3):
            recording.step("draft", 1, layers=1, graph=True)
    decode = breakdown.make(recording.trace()).phases["decode"]
    assert (decode.steps, decode.set_aside, decode.moe_layers) == (5, {"ragged": 15}, 6)


def test_a_step_that_was_launched_before_the_recording_is_not_called_prefill() -> None:
    recording = Timeline()
    for _ in range(5):
        recording.step("decode", 1, graph=True)
    _, begin, end = recording.steps[0]
    recording.rows = [row for row in recording.rows if int(row["start_ns"]) > begin + 20_000]
    for row in recording.rows:
        if int(row["start_ns"]) < end:
            row.update(replayed=False, launch_ns=kernel_table.NONE, launch_thread=kernel_table.NONE)
    result = breakdown.make(recording.trace())
    assert step_counts(result) == [("decode", 4), (forward_steps.UNKNOWN, 1)]


def test_a_last_step_that_is_cut_off_does_not_make_the_whole_ones_prefill() -> None:
    recording = Timeline()
    for _ in range(5):
        recording.step("decode", 8, layers=6)
    _, begin, end = recording.steps[-1]
    recording.rows = [row for row in recording.rows if int(row["start_ns"]) < begin + (end - begin) // 6]
    assert counted(breakdown.make(recording.trace())) == [(forward_steps.UNKNOWN, 4, {"ragged": 1})]


def test_softmax_of_layers_whose_attention_is_not_known_does_not_end_a_step() -> None:
    recording = generation(decode=4)
    for row in recording.rows:
        if row["text"] == timeline.FLASH:
            row["text"] = "void at::native::(anonymous namespace)::cunn_SoftMaxForward<8, float, float, float>"
    result = breakdown.make(recording.trace())
    assert list(result.phases) == [forward_steps.WHOLE]


BMM = "void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_bf16_128x128_32x5_tn_align8>(Params)"
SOFTMAX = "void at::native::(anonymous namespace)::cunn_SoftMaxForward<8, c10::BFloat16, float, c10::BFloat16>"
MASK = "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<c10::BFloat16>>"
EAGER = ((BMM, 900), (MASK, 200), (SOFTMAX, 700), (BMM, 900))


@pytest.mark.parametrize("softmax", [SOFTMAX, "softmax_warp_forward", "_softmax_kernel"])
def test_the_softmax_of_eager_attention_is_attention_and_the_sampler_s_is_not(softmax: str) -> None:
    recording, rows, meant = generation(decode=3), [], []
    for row, category in zip(recording.rows, recording.meant, strict=True):
        parts: Sequence[tuple[str, int]] = ((str(row["text"]), int(row["duration_ns"])),)
        if row["text"] == timeline.FLASH:
            parts = EAGER
        elif row["text"] == timeline.ARGMAX:
            parts = ((softmax, 500), (timeline.ARGMAX, 900))
        begin = int(row["start_ns"])
        for text, duration_ns in parts:
            rows.append(
                {**row, "text": softmax if text == SOFTMAX else text, "start_ns": begin, "duration_ns": duration_ns}
            )
            meant.append(category)
            begin += duration_ns + 10
    recording.rows = rows
    trace = recording.trace()
    assigned = roles.assign(trace)
    places = [place for place, row in enumerate(rows) if row["text"] == softmax]
    categories = [CATEGORIES[assigned.category[place]] for place in places]
    assert categories == [meant[place] for place in places]
    assert {"attention", "sampling"} == set(categories)
    assert assigned.gates == "by the order of launches"
    assert list(breakdown.make(trace).phases) == ["prefill", "decode"]


def test_a_step_of_two_devices_is_one_step() -> None:
    first, second = generation(decode=4), generation(decode=4)
    for row in second.rows:
        row["device"] = 1
    result = breakdown.make(Timeline(rows=first.rows + second.rows).trace())
    assert result.devices == 2
    assert step_counts(result) == [("prefill", 1), ("decode", 4)]
    alone = breakdown.make(first.trace()).phases["decode"]
    assert result.phases["decode"].total_ms == pytest.approx(alone.total_ms)


def test_a_trace_without_steps_is_one_whole() -> None:
    result = breakdown.make(timeline.trace_of(["unheard_of", timeline.NORM], start_ns=[0, 50], duration_ns=[100, 100]))
    assert step_counts(result) == [(forward_steps.WHOLE, 1)]
    assert result.steps_source == ("no steps were found: no range names them, and no attention kernel is recognised")
    (phase,) = result.phases.values()
    assert (phase.busy_ms, phase.overlap_ms, phase.wall_ms) == pytest.approx((150e-6, 50e-6, None))
    assert phase.classified == pytest.approx(0.5)
    assert [each.name for each in phase.unclassified] == ["unheard_of"]
    assert phase.ceiling.if_free == 1


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("early", [0, 5, 10])
def test_a_trace_without_steps_is_whole_on_all_devices_and_from_its_first_kernel(devices: int, early: int) -> None:
    recording = Timeline()
    for at in range(10):
        launch = {"launch_ns": kernel_table.NONE, "launch_thread": kernel_table.NONE} if at < early else {}
        recording.run("dense_gemm", timeline.QKV, 1_000_000, device=at % devices, **launch)
    result = breakdown.make(recording.trace())
    assert (counted(result), result.devices) == ([(forward_steps.WHOLE, 1, {})], devices)
    (phase,) = result.phases.values()
    span_ms = 10 + 9 * timeline.GAP_NS / 1e6
    own_ms = 10 / devices  # of the slowest rank
    assert (phase.total_ms, phase.total_launches) == (pytest.approx(own_ms), own_ms)
    assert (phase.busy_ms, phase.idle_ms) == pytest.approx((own_ms, span_ms - own_ms))
    assert sum(rank.launches for rank in phase.ranks) == (10 if devices > 1 else 0)
    assert (result.whole["dense_gemm"].time, result.whole["dense_gemm"].count) == (pytest.approx(10), 10)


def test_a_device_without_steps_beside_one_with_them_is_outside_steps() -> None:
    recording = generation(decode=4)
    for _ in range(3):
        recording.run("expert_gemm", timeline.MOE, 1_000_000, device=1, launch_thread=8)
    result = breakdown.make(recording.trace(ranges=step_ranges(recording, "vllm")))
    assert step_counts(result) == [("prefill", 1), ("decode", 4), (forward_steps.OUTSIDE, 1)]
    assert result.phases[forward_steps.OUTSIDE].total_ms == pytest.approx(3)


ADAM = "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<TensorListMetadata<4>, FusedAdamMathFunctor>"
UPDATES = (ADAM, "void split_embedding_codegen_rowwise_adagrad_kernel<float>(int)", "_single_tensor_adamw_0")
SAMPLED = "void at::native::(anonymous namespace)::cunn_SoftMaxForward<8, float, float, float>(float*)"


def training(updates: str | None) -> Timeline:
    recording = Timeline()
    for _ in range(4):
        for number in range(3):
            recording.layer(number, 64, fp8=False, split_k=True, scale=4)
        recording.run("sampling", SAMPLED, 2000)
        recording.run(
            "attention", "void flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<Flash_bwd_kernel_traits<64>>", 9000
        )
        for _ in range(2 if updates else 0):
            recording.run("other", updates or "", 3000)
        recording.clock_ns += 20_000
    return recording


@pytest.mark.parametrize("update", UPDATES)
def test_a_step_of_training_ends_with_its_optimizer(update: str) -> None:
    result = breakdown.make(training(update).trace())
    assert step_counts(result) == [(forward_steps.UNKNOWN, 4)]
    assert result.steps_source == "optimizer after every step (the trace is of training)"
    assert result.phases[forward_steps.UNKNOWN].moe_layers == 3


def test_training_without_an_optimizer_is_whole_and_says_so() -> None:
    result = breakdown.make(training(None).trace())
    assert step_counts(result) == [(forward_steps.WHOLE, 1)]
    assert "the trace is of training" in result.steps_source


@pytest.mark.parametrize("name", ["void f<{lambda(float)#1}>(int)", "madam_kernel", "void sgdx::run(int)"])
def test_a_piece_of_a_word_is_no_optimizer(name: str) -> None:
    recording = generation(decode=4)
    recording.run("other", name, 1000)
    assert breakdown.make(recording.trace()).steps_source == "sampling after every step"


def test_a_trace_says_why_its_softmax_ends_no_step() -> None:
    recording = Timeline()
    for _ in range(4):
        recording.run("expert_gemm", timeline.MOE, 9000)
        recording.run("sampling", SAMPLED, 1000)
    result = breakdown.make(recording.trace())
    assert list(result.phases) == [forward_steps.WHOLE]
    assert "no attention kernel is recognised, so softmax may be attention's" in result.steps_source


def test_a_summary_has_shares_and_a_ceiling_but_no_times_of_steps() -> None:
    texts = [timeline.MOE, timeline.MOE, timeline.NORM]
    result = breakdown.make(timeline.trace_of(texts, start_ns=[0, 0, 0], duration_ns=[300, 300, 400], timed=False))
    (phase,) = result.phases.values()
    assert phase.categories["expert_gemm"].share == pytest.approx(0.6)
    assert (phase.busy_ms, phase.span_ms, phase.wall_ceiling) == (None, None, None)
    assert phase.ceiling.if_free == pytest.approx(2.5)


def test_a_row_of_a_summary_counts_for_all_its_launches() -> None:
    texts, columns = [timeline.MOE, timeline.NORM], {"start_ns": [0, 0], "duration_ns": [6 * 10**15, 4 * 10**15]}
    trace = timeline.trace_of(texts, timed=False, **columns, count=[15_000_000_000, 5])
    (phase,) = breakdown.make(trace).phases.values()
    assert phase.categories["expert_gemm"].launches == 15_000_000_000
    assert phase.total_launches == 15_000_000_005
    assert {kernel.name: kernel.launches for kernel in phase.functions} == {
        timeline.MOE: 15_000_000_000,
        timeline.NORM: 5,
    }
    record = kernels_record.make("summary.csv", trace, None)
    assert (record.kernels, record.copies) == (15_000_000_005, 0)
    assert (record.total.time, record.total.count) == (10**10, 15_000_000_005)


rows_of = st.lists(
    st.tuples(
        st.sampled_from(
            [timeline.MOE, timeline.NORM, timeline.FLASH, timeline.ARGMAX, timeline.QKV, timeline.TOPK, "x"]
        ),
        st.integers(0, 2000),  # start
        st.integers(0, 300),  # duration
        st.integers(0, 1),  # device
        st.integers(0, 2),  # stream
    ),
    min_size=1,
    max_size=60,
)


def made_of(rows: list[tuple[str, int, int, int, int]]) -> Trace:
    texts, start_ns, duration_ns, device, stream = map(list, zip(*rows, strict=True))
    return timeline.trace_of(texts, start_ns=start_ns, duration_ns=duration_ns, device=device, stream=stream)


@settings(max_examples=150)
@given(rows=rows_of, seed=st.integers(0, 1000))
def test_shares_add_up_and_the_order_of_rows_does_not_matter(
    rows: list[tuple[str, int, int, int, int]], seed: int
) -> None:
    result = breakdown.make(made_of(rows))
    assert breakdown.make(made_of(random.Random(seed).sample(rows, len(rows)))) == result
    assert sum(part.time for part in result.whole.values()) == pytest.approx(sum(row[2] for row in rows) / 1e6)
    assert sum(part.count for part in result.whole.values()) == len(rows)
    experts = [row[2] for row in rows if row[0] == timeline.MOE]
    assert ("expert_gemm" in result.whole) == bool(experts)
    if experts:
        part = result.whole["expert_gemm"]
        assert (part.time, part.count) == (pytest.approx(sum(experts) / 1e6), len(experts))
        assert part.share == pytest.approx(sum(experts) / (sum(row[2] for row in rows) or 1))
    for phase in result.phases.values():
        total = sum(time.share for time in phase.categories.values())
        assert total == pytest.approx(1) or (total == 0 and phase.total_ms == 0)
        assert (phase.busy_ms or 0) <= (phase.span_ms or 0) + 1e-12
        assert 0 <= phase.classified <= 1 + 1e-12
        assert 0 <= phase.ceiling.expert_gemm_share <= 1


@settings(max_examples=60)
@given(sizes=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=7))
def test_categories_are_medians_over_the_steps_and_their_kernels_add_up_to_them(sizes: list[tuple[int, int]]) -> None:
    recording = Timeline()
    for norms, uploads in sizes:
        recording.run("attention", timeline.FLASH, 90_000)
        for at in range(norms):
            recording.run("norm", f"{timeline.NORM}{at}", 300 + 10 * uploads)
        for _ in range(uploads):
            recording.run("memory", timeline.UPLOAD, 40 * norms)
        recording.run("sampling", timeline.ARGMAX, 20)
    trace = recording.trace()
    assigned_roles = roles.assign(trace)
    result = breakdown.make(trace)
    for name, phase in result.phases.items():
        counted_steps = [step for step in result.steps if step.phase == name and step.aside is None]
        for category, time in phase.categories.items():
            of_steps = [
                [row for row in step.rows if CATEGORIES[assigned_roles.category[row]] == category]
                for step in counted_steps
            ]
            sums = [sum(int(trace.kernels.duration_ns[row]) for row in rows) / 1e6 for rows in of_steps]
            assert time.ms == pytest.approx(statistics.median(sums))
            assert time.launches == statistics.median(map(len, of_steps))
            kernels = [kernel for kernel in phase.functions if kernel.category == category]
            assert sum(kernel.ms for kernel in kernels) == pytest.approx(time.ms)
            assert sum(kernel.launches for kernel in kernels) == pytest.approx(time.launches)


@settings(max_examples=150)
@given(rows=rows_of)
def test_busy_time_is_the_number_of_nanoseconds_with_a_kernel_running(
    rows: list[tuple[str, int, int, int, int]],
) -> None:
    # without sampling and without a head's GEMM it is one whole
    cutting = (timeline.ARGMAX, timeline.QKV)
    one_device = [(timeline.NORM if row[0] in cutting else row[0], *row[1:3], 0, row[4]) for row in rows]
    (phase,) = breakdown.make(made_of(one_device)).phases.values()
    running, others = set(), set()
    for name, start, duration, *_ in one_device:
        running |= set(range(start, start + duration))
        if name != timeline.MOE:
            others |= set(range(start, start + duration))
    assert round((phase.busy_ms or 0) * 1e6) == len(running)
    assert round(phase.ceiling.expert_gemm_share * len(running)) == len(running - others)
    assert round(((phase.overlap_ms or 0) + (phase.busy_ms or 0)) * 1e6) == sum(row[2] for row in one_device)


def test_steps_of_a_device_follow_each_other() -> None:
    trace = generation(decode=5).trace()
    result = forward_steps.find(trace, roles.assign(trace), trace.kernels.by_device)
    for first, second in pairwise(result.steps):
        assert first.next_ns == second.start_ns
    assert result.steps[-1].next_ns is None
    assert sorted(np.concatenate([step.rows for step in result.steps]).tolist()) == list(range(len(trace.kernels)))


def test_what_was_launched_before_the_recording_and_runs_first_is_outside_steps() -> None:
    recording = Timeline()
    for _ in range(5):
        recording.run("memory", timeline.DOWNLOAD, 40_000, launch_ns=kernel_table.NONE, launch_thread=kernel_table.NONE)
    begun = len(recording.rows)
    rest = generation(decode=3)
    shift = recording.clock_ns
    recording.rows += [
        {**row, "start_ns": int(row["start_ns"]) + shift, "launch_ns": int(row["launch_ns"]) + shift}
        for row in rest.rows
    ]
    result = breakdown.make(recording.trace())
    alone = breakdown.make(rest.trace())
    assert step_counts(result) == [("prefill", 1), ("decode", 3), (forward_steps.OUTSIDE, 1)]
    assert result.phases["prefill"].total_ms == pytest.approx(alone.phases["prefill"].total_ms)
    assert sum(time.launches for time in result.phases[forward_steps.OUTSIDE].categories.values()) == begun


def test_without_sampling_and_graphs_steps_are_found_by_the_pattern_of_layers() -> None:
    recording = generation(decode=4)
    keep = [at for at, row in enumerate(recording.rows) if row["text"] != timeline.ARGMAX]
    result = breakdown.make(recording.trace(order=keep))
    assert result.steps_source == "the pattern of layers"
    assert step_counts(result) == [("prefill", 1), ("decode", 4)]
    for phase_name, phase in result.phases.items():
        want = expected(recording, phase_name)
        for category in ("expert_gemm", "gate_gemm", "attention", "routing_permute", "dense_gemm"):
            assert phase.categories[category].ms == pytest.approx(want[category]), category


def test_shared_experts_are_not_the_experts_that_tokens_are_routed_to() -> None:
    ranges = [("model.layers.0.mlp.experts.shared_experts", 100, 200, 1)]
    columns = {"start_ns": [500], "duration_ns": [9], "launch_ns": [150], "launch_thread": [1]}
    result = roles.assign(timeline.trace_of([timeline.QKV], ranges, **columns))
    assert (CATEGORIES[result.category[0]], result.layer[0]) == ("dense_gemm", 0)
