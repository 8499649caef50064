"""Which precision the experts ran in, by their kernels' names and by what quantises their inputs."""

from __future__ import annotations

import pytest

from moe_eval.traces import observed_precision, roles
from moe_eval.traces.kernel_table import Trace
from moe_eval.traces.observed_precision import ObservedPrecision
from tests.doubles import timeline
from tests.doubles.timeline import generation

GROUPED = (
    "void cutlass::device_kernel<cutlass::gemm::kernel::GemmUniversal<cutlass::gemm::GroupProblemShape<cute::tuple<"
    "long, long, long>>, cutlass::gemm::collective::CollectiveMma<cutlass::gemm::"
    "MainloopSm90ArrayTmaGmmaWarpSpecialized<4>, cute::tuple<cute::C<128>>, {0}, {0}>>>"
)
NAMES = [
    (GROUPED.format("cutlass::bfloat16_t"), "bf16", "cutlass"),
    (GROUPED.format("cutlass::float_e4m3_t"), "fp8", "cutlass"),
    (
        "bmm_E2m1_E2m1E2m1_Fp32_Ab16_Bb16_Cb16_t128x8x512u2_s5_et128x8_m128x8x64_c1x1x1_rM_TN_swiGlu_dynB_sm100f",
        "nvfp4",
        "trtllm-gen",
    ),
    ("bmm_Bfloat16_E4m3E4m3_Fp32_t128x8x128_s6_et128x8_m64x8x32_dynB_sm100f", "fp8", "trtllm-gen"),
    (
        "void deep_gemm::fp8_gemm_kernel<2048, 1536, 64, 128, (deep_gemm::GemmType)1, GroupedWithOffset>",
        "fp8_block",
        "deepgemm",
    ),
    ("void marlin_moe_wna16::Marlin<__nv_bfloat16, 1125899906909960, 256, 4, 8, 8, false>", "w4a16", "marlin"),
    ("bmm_Bfloat16_MxE2m1MxE4m3_Fp32_t128x16x256u2_s3_et128x16_m128x16x32_cga1x1x1_sm100f", "mxfp4", "trtllm-gen"),
    ("bmm_Bfloat16_MxE4m3MxE4m3_Fp32_t128x8x256u2_s6_et128x8_sm100f", "mxfp8", "trtllm-gen"),
    (
        "void cutlass::device_kernel<dpsk::grouped_gemm::cuda::m_grouped_fp8_ptp128c::GemmKernel>(dpsk::Params)",
        "fp8_block",
        "cutlass",
    ),
    ("_mxfp8_grouped_gemm_kernel", "mxfp8", None),
    ("void some::grouped_gemm_fp8_kernel<128>(float*)", "fp8", None),
    ("_ZN2ck15kernel_moe_gemmINS_15GridwiseMoeGemmIDF16bDF16bffEEEEvT_", "bf16", None),
    ("void ck::kernel_moe_gemm<ck::GridwiseMoeGemm<ck::Tuple<>, __hip_bfloat16, __hip_bfloat16>>", "bf16", None),
    ("void ck_tile::kentry<1, ck_tile::FusedMoeGemmKernel<ck_tile::fp8_t, ck_tile::fp8_t, float>>", "fp8", None),
    (
        "void ck::kernel_moe_mxgemm<ck::GridwiseMoeGemmMX_BPreshuffle<ck::f4x2_pk_t, ck::e8m0_bexp_t>>",
        "mxfp4",
        None,
    ),
]


def observe(trace: Trace) -> ObservedPrecision:
    return observed_precision.observe(trace, roles.assign(trace))


@pytest.mark.parametrize(("name", "precision", "backend"), NAMES, ids=[f"{each[2]}-{each[1]}" for each in NAMES])
def test_a_gemm_s_name_tells(name: str, precision: str, backend: str) -> None:
    observed = observe(timeline.trace_of([name] * 2, start_ns=[0, 100], duration_ns=[50, 50]))
    assert (observed.precision, observed.backend) == (precision, backend)
    assert observed_precision.contradiction(precision if precision != "w4a16" else "nvfp4-w4a16", observed) is None


@pytest.mark.parametrize("fp8", [False, True])
def test_where_a_triton_kernel_s_name_does_not_the_quantisation_of_its_inputs_does(fp8: bool) -> None:
    observed = observe(generation(fp8=fp8).trace())
    assert (observed.precision, observed.backend) == ("fp8" if fp8 else "bf16", "triton")
    assert observed_precision.contradiction("fp8" if fp8 else "bf16", observed) is None
    wrong = observed_precision.contradiction("bf16" if fp8 else "fp8", observed)
    assert wrong is not None
    assert wrong.startswith("the label says")


@pytest.mark.parametrize(
    ("types", "precision"),
    [
        (("c10::Half", "__half"), "fp16"),
        (("float", "float"), None),
        (("c10::Half", "__nv_bfloat16"), None),
        (("N3c108BFloat16E", "float"), "bf16"),
    ],
)
def test_without_quantisation_the_type_is_that_of_kernels_around_and_none_where_they_tell_none(
    types: tuple[str, str], precision: str | None
) -> None:
    recording = generation()
    for row in recording.rows:
        row["text"] = str(row["text"]).replace("c10::BFloat16", types[0]).replace("__nv_bfloat16", types[1])
    observed = observe(recording.trace())
    assert (observed.precision, observed.backend) == (precision, "triton")
    assert observed.evidence.startswith("no kernel quantises the experts' inputs")
    assert (observed_precision.contradiction("fp8", observed) is None) == (precision is None)


@pytest.mark.parametrize(("text", "precision"), [("unheard_of_kernel<4>", None), ("_moe_align_small_kernel", "bf16")])
def test_nothing_is_concluded_from_a_moe_block_with_kernels_that_no_rule_knows(
    text: str, precision: str | None
) -> None:
    recording = generation(decode=2)
    rows = []
    for row in recording.rows:
        if row["text"] == timeline.MOE:
            rows.append({**row, "text": text, "start_ns": int(row["start_ns"]) - 300, "duration_ns": 100})
        rows.append(row)
    recording.rows = rows
    observed = observe(recording.trace())
    assert observed.precision == precision
    assert (text in observed.evidence) == (precision is None)
    assert (observed_precision.contradiction("fp8", observed) is None) == (precision is None)


def test_quantisation_of_dense_layers_alone_does_not_make_experts_fp8() -> None:
    recording = generation(decode=2)
    rows = []
    for row in recording.rows:
        if row["text"] in (timeline.QKV, timeline.O_PROJ):
            rows.append({**row, "text": timeline.QUANT, "start_ns": int(row["start_ns"]) - 200, "duration_ns": 100})
        rows.append(row)
    recording.rows = rows
    assert observe(recording.trace()).precision == "bf16"


@pytest.mark.parametrize(
    ("names", "quant", "precision", "contradicted"),
    [
        ([NAMES[4][0], NAMES[1][0]], timeline.QUANT, ("fp8", "fp8_block"), ["nvfp4"]),
        ([NAMES[3][0], "some_moe_gemm_kernel"], timeline.QUANT, (None,), []),
        ([NAMES[0][0], NAMES[1][0]], timeline.QUANT, ("mixed",), ["fp8", "nvfp4"]),
        (["fused_moe_kernel_gptq_awq"], None, (None,), []),
        ([timeline.MOE], "_per_token_quant_int8", ("int8",), ["fp8", "nvfp4"]),
    ],
)
def test_what_names_leave_open_is_not_made_up(
    names: list[str], quant: str | None, precision: tuple[str | None, ...], contradicted: list[str]
) -> None:
    recording, at = generation(decode=3, fp8=quant is not None), 0
    for row in recording.rows:
        if row["text"] == timeline.MOE:
            row["text"], at = names[at % len(names)], at + 1
        elif row["text"] == timeline.QUANT:
            row["text"] = str(quant)
    observed = observe(recording.trace())
    assert observed.precision in precision
    assert [each for each in ("fp8", "nvfp4") if observed_precision.contradiction(each, observed)] == contradicted


def test_a_summary_does_not_tell_whose_inputs_are_quantised() -> None:
    texts = [timeline.MOE, timeline.QUANT]
    assert observe(timeline.trace_of(texts, start_ns=[0, 0], duration_ns=[9, 1], timed=False)).precision is None


def test_labels_and_what_contradicts_them() -> None:
    marlin = ObservedPrecision("w4a16", "marlin", "e")
    assert "dequantised the weights" in (observed_precision.contradiction("nvfp4", marlin) or "")
    assert observed_precision.contradiction("fp8_block", ObservedPrecision("fp8", "triton", "e")) is None
    assert observed_precision.contradiction("fp32", ObservedPrecision("bf16", "triton", "e")) is None
    assert observed_precision.contradiction("nvfp4", ObservedPrecision("fp8", None, "e")) is not None
    assert observed_precision.contradiction("nvfp4", ObservedPrecision(None, None, "e")) is None
    mx = {precision: ObservedPrecision(precision, None, "e") for precision in ("mxfp4", "mxfp8", "nvfp4", "fp8")}
    wrong = {(label, seen) for label in mx for seen in mx if observed_precision.contradiction(label, mx[seen])}
    alike = {(label, label) for label in mx} | {("mxfp8", "fp8")}  # a name of FP8 may leave its scales out
    assert wrong == {(label, seen) for label in mx for seen in mx} - alike
    assert observed_precision.contradiction("mxfp4-w4a16", marlin) is None
    trace = timeline.trace_of(["unheard_of"], start_ns=[0], duration_ns=[50])
    assert observe(trace).precision is None


@pytest.mark.parametrize(
    ("quantiser", "precision"),
    [
        ("void vllm::cvt_fp16_to_fp4<__nv_bfloat16, false>", "nvfp4"),
        (
            "void tensorrt_llm::kernels::quantize_with_block_size<(tensorrt_llm::kernels::BlockScaleQuantizationType)0,"
            " __nv_bfloat16, 16, false>",
            "nvfp4",
        ),
        ("void per_token_group_quant_8bit_kernel<c10::BFloat16, c10::Float8_e4m3fn>", "fp8_block"),
        (
            "void tensorrt_llm::kernels::quantize_with_block_size<(tensorrt_llm::BlockScaleQuantizationType)2, "
            "__nv_bfloat16, 32, true>",
            "mxfp8",
        ),
        (
            "void cuda::per_token_cast_to_fp8_with_channels<__nv_bfloat16, 128, false>(__nv_bfloat16 const*)",
            "fp8_block",
        ),
        ("void aiter::dynamic_per_group_scaled_quant_kernel<__hip_bfloat16, opus::fp4_t, 32>", "mxfp4"),
        ("void aiter::dynamic_per_token_scaled_quant_kernel<DF16b, opus::fp8_t>", "fp8"),
        ("_dynamic_per_token_quant_fp8_i8_kernel", None),
        ("_dynamic_mxfp8_quant_kernel", "mxfp8"),
        ("void vllm::dynamic_scaled_int8_quant_kernel<c10::BFloat16, float>", "int8"),
        ("void tensorrt_llm::kernels::scaleMatrixPerTensorVec<true, x>", None),
    ],
)
def test_the_quantiser_says_to_what_and_one_that_does_not_is_no_evidence(quantiser: str, precision: str | None) -> None:
    recording = generation(fp8=True)
    for row in recording.rows:
        if row["text"] == timeline.QUANT:
            row["text"] = quantiser
    observed = observe(recording.trace())
    assert (observed.precision, observed.backend) == (precision, "triton")
    label = {"int8": "fp8"}.get(str(precision), precision or "nvfp4")
    assert (observed_precision.contradiction(label, observed) is None) == (precision != "int8")
