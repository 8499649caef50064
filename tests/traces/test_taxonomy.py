"""The taxonomy of kernels against real names, against the collected facts, and against hostile ones."""

from __future__ import annotations

import gzip
import json
import re
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_eval.traces import kernel_name, taxonomy
from moe_eval.traces.taxonomy import CATEGORIES, PRECISIONS, SEARCHED, WORDS, Label, classify

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[2] / "shared"
FACTS = SHARED / "facts" / "kernels.tsv"
MORE_FACTS = FACTS.with_name("kernels_more.tsv")
TRACES = SHARED / "data" / "traces"
LINES = (HERE / "names.tsv").read_text(encoding="utf-8").splitlines()
NAMES = [tuple(line.split("\t")) for line in LINES if not line.startswith("#")]
TOML = tomllib.loads(Path(taxonomy.__file__).with_name("taxonomy.toml").read_text(encoding="utf-8"))
IDS = [row["id"] for row in TOML["rule"]]


@cache
def finder(pattern: str, *, words: bool = True) -> Callable[[str], object]:
    left = "(?<![a-z])" if words and re.match(r"[a-zA-Z(\[]", pattern) else ""
    right = "(?![a-z])" if words and re.search(r"[a-zA-Z)\]?}]$", pattern) else ""
    return re.compile(f"{left}(?:{pattern}){right}", re.DOTALL).search


PATTERNS = {
    key: [[finder(text) for text in row.get(key, [])] for row in TOML["rule"]] for key in ("match", "also", "unless")
}


def naive(name: str) -> Label:
    """The rules as taxonomy.toml's head describes them, pattern by pattern and without any shortcut."""
    words = kernel_name.parse(name)
    return first_rule(words.identifier, name, words) or first_rule(words.own, name, words) or Label("other", "")


def first_rule(own: str, name: str, words: kernel_name.KernelName) -> Label | None:
    for row, match, also, unless in zip(TOML["rule"], *PATTERNS.values(), strict=True):
        if not own or not any(fits(own) for fits in match):
            continue
        if not all(fits(words.full) for fits in also) or any(fits(words.full) for fits in unless):
            continue
        fused = row.get("fused_with", [])
        if isinstance(fused, dict):
            fused = [
                category for text, categories in fused.items() if finder(text)(words.full) for category in categories
            ]
        precision = row.get("precision") or precision_of(name, words.own, row.get("evidence"))
        unique = tuple(dict.fromkeys(fused))
        return Label(row["category"], row["id"], unique, precision, row.get("backend"), row.get("selects", False))
    return None


def precision_of(name: str, own: str, table: str | None) -> str | None:
    """By the types in the name as it was written, then by the words of the kernel's own name."""
    if table is None:
        return None
    typed = TOML["evidence"][table] if table != WORDS else {}
    by_type = [operands for text, operands in typed.items() if finder(text, words=False)(name)]
    by_word = [operands for text, operands in TOML["evidence"][WORDS].items() if finder(text)(own)]
    return next(iter(by_type + by_word), None)


@pytest.mark.parametrize("row", NAMES, ids=lambda row: row[0][:60])
def test_real_names_are_told(row: tuple[str, ...]) -> None:
    name, category, _, fused, precision, backend = row
    label = classify(name)
    assert (label.category, "+".join(label.fused_with)) == (category, fused)
    assert (label.precision or "", label.backend or "") == (precision, backend)


def test_shortcuts_change_nothing() -> None:
    for name in (each for row in NAMES for each in (row[0], f"prefix {row[0]}")):
        assert classify(name) == naive(name)


def test_every_rule_has_a_real_name() -> None:
    hit = Counter(classify(row[0]).rule for row in NAMES)
    assert set(IDS) - set(hit) == set()
    assert "" not in hit


def test_rules_are_well_formed() -> None:
    assert len(set(IDS)) == len(IDS)
    for row in TOML["rule"]:
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", row["id"])
        fused = row.get("fused_with", [])
        several = fused.values() if isinstance(fused, dict) else [fused]
        assert {row["category"], *(each for some in several for each in some)} <= set(CATEGORIES) - {"other"}
        assert "precision" not in row or row["precision"] in PRECISIONS
        assert not {"precision", "evidence"} <= set(row)
    assert {operands for table in TOML["evidence"].values() for operands in table.values()} <= set(PRECISIONS)
    assert {row["evidence"] for row in TOML["rule"] if "evidence" in row} == set(TOML["evidence"])


def test_no_pattern_repeats_without_a_bound() -> None:
    patterns = [each for table in TOML["evidence"].values() for each in table]
    for row in TOML["rule"]:
        fused = row.get("fused_with", [])
        patterns += row["match"] + row.get("also", []) + row.get("unless", [])
        patterns += fused if isinstance(fused, dict) else []
    for pattern in patterns:
        # from the beginning of a name there is one place to start from, so that ".*" is linear there
        allowed = pattern.startswith("^") or "(?:^" in pattern
        assert not re.search(r"[*+]|\{\d*,\}", pattern.replace(".*", "") if allowed else pattern), pattern
        # such a pattern is tried at the beginning alone, so it must not have another way to fit
        assert not pattern.startswith("^") or "|" not in re.sub(r"\(.*\)", "", pattern), pattern


def test_every_category_but_other_is_reached() -> None:
    assert {row[1] for row in NAMES} == set(CATEGORIES) - {"other"}


@pytest.mark.parametrize(
    ("name", "selects"),
    [
        ("void vllm::moe::topkGating<8, 128, 4, 16, 32, int, __nv_bfloat16, (vllm::moe::ScoringFunc)0>", True),
        ("void tensorrt_llm::kernels::customMoeRoutingKernel<__nv_bfloat16, float, int, 128, 8, false>", True),
        ("void moe_fused_gate_kernel<cutlass::bfloat16_t, 32, 256, 8, 4, 24, 6>", True),
        ("_ZN5aiter19topksoftmax_4x128x4E", True),
        ("void moe::dev::routing::routingDeepSeek::routingMainKernel<KernelParams<float>>", True),
        # it only counts and sorts what routingMainKernel has chosen
        ("void moe::dev::routing::routingDeepSeek::routingIndicesClusterKernel<KernelParams<float>>", False),
        ("_ZN3moe3dev7routing15routingDeepSeek27routingIndicesClusterKernelINS2_12KernelParamsIfEE", False),
        ("void tensorrt_llm::kernels::cutlass_kernels::finalizeMoeRoutingKernel<__nv_bfloat16>", False),
        ("void vllm::moe::moe_align_block_size_kernel<int>(int const*, int*)", False),
        ("nvjet_tst_64x8_64x16_2x1_v_bz_TNT", False),
    ],
)
def test_who_selects_the_experts(name: str, selects: bool) -> None:
    assert classify(name).selects is selects


def test_an_nvjet_name_never_tells_the_gate() -> None:
    assert classify("nvjet_tst_64x8_64x16_2x1_v_bz_TNT").category == "dense_gemm"
    assert classify("void dsv3MinLatencyKernels::router_gemm_kernel<__nv_bfloat16, 128>").category == "gate_gemm"


@pytest.mark.parametrize(
    ("name", "category"),
    [
        ("_gemma_rmsnorm_kernel", "norm"),
        ("void fbgemm_gpu::unheard_of<float>(float*)", "other"),
        ("_ZN10fbgemm_gpu10unheard_ofIfEEvPf", "other"),
        ("void flash::unheard_of<4>(float*)", "other"),
        ("void at::native::unheard_of<4>(float*)", "other"),
        ("void deep_gemm::transpose_fp32<512u>(float const*)", "quant_dequant"),
        ("void transformer_engine::normalization::unheard_of<4>(float*)", "other"),
        ("gemmini_unheard_of", "other"),
        ("unattended_kernel", "other"),
        ("european_option_kernel", "other"),
        ("GEMMKernel", "dense_gemm"),
        ("myGemmKernel", "dense_gemm"),
        ("s884gemm_fp16", "dense_gemm"),
    ],
)
def test_a_name_is_read_by_words_and_its_namespaces_alone_decide_nothing(name: str, category: str) -> None:
    assert classify(name).category == category


@pytest.mark.parametrize(
    ("mangled", "plain"),
    [
        (
            "_ZN5aiter24add_rmsnorm_quant_kernelIDF16bDF16bLi256ELi8EEEvPT0_",
            "void aiter::add_rmsnorm_quant_kernel<__bf16, __bf16, 256, 8>(int*)",
        ),
        (
            "_ZN7deep_ep9intranode8dispatchILi2ELi768EEEvP4int4",
            "void deep_ep::intranode::dispatch<2, 768>(int4*)",
        ),
        (
            "_ZN2at6native29vectorized_elementwise_kernelILi4ENS0_11FillFunctorIfEEEEvi",
            "void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<float>>(int)",
        ),
        (
            "_ZN7cutlass13device_kernelIN5flash20enable_sm90_or_laterINS1_16FlashAttnFwdSm90IiEEEEEEvNT_6ParamsE",
            "void cutlass::device_kernel<flash::enable_sm90_or_later<flash::FlashAttnFwdSm90<int>>>(Params)",
        ),
    ],
)
def test_mangled_and_demangled_names_are_alike(mangled: str, plain: str) -> None:
    assert classify(mangled) == classify(plain)
    assert classify(plain).category != "other"


def test_the_arguments_of_a_kernel_do_not_outvote_its_identifier() -> None:
    name = (
        "void flash::compute_attn_ws<traits<192>, flash::SeqLenTraits<true>>(AllReduceParams, cutlass::GemmUniversal)"
    )
    assert classify(name).category == "attention"
    assert classify("void unheard_of<flash::FlashAttnFwdSm90<4>>(int)").category == "attention"


def test_types_of_a_grouped_gemm_in_a_helper_do_not_make_it_one() -> None:
    name = (
        "cutlass_kernels::expandInputRowsKernel<{}, (TmaWarpSpecializedGroupedGemmInput::FpXBlockScalingType)2, false>"
    )
    same, quantised = (classify(name.format(f"__nv_bfloat16, {out}")) for out in ("__nv_bfloat16", "__nv_fp4_e2m1"))
    assert (same.category, same.fused_with) == ("routing_permute", ())
    assert (quantised.category, quantised.fused_with) == ("routing_permute", ("quant_dequant",))
    already = classify(name.format("__nv_fp8_e4m3, __nv_fp8_e4m3"))
    assert already.fused_with == ()


@pytest.mark.parametrize("scales", ["float_ue4m3_t", "float_ue8m0_t"])
@pytest.mark.parametrize("fused", ["", "EpilogueMoeFusedFinalize"])
def test_evidence_of_cutlass(scales: str, fused: str) -> None:
    name = f"device_kernel<GemmUniversal<GroupProblemShape<>, BlockScaled<cutlass::float_e2m1_t, cutlass::{scales}>, "
    label = classify(f"{name}cutlass::bfloat16_t>, {fused}>")
    assert label.precision == {"float_ue4m3_t": "nvfp4", "float_ue8m0_t": "mxfp4"}[scales]
    assert label.fused_with == (("routing_permute",) if fused else ())
    plain = "device_kernel<GemmUniversal<GroupProblemShape<>, Mainloop<{}>, cutlass::bfloat16_t>>"
    operands = {"__nv_fp8_e4m3": "fp8", "cutlass::bfloat16_t": "bf16", "cutlass::half_t": None, "signed char": None}
    assert {each: classify(plain.format(each)).precision for each in operands} == operands


def test_unknown_names_are_other() -> None:
    for name in ("", " ", "my_new_kernel", "attn_res_fwd_online_v2_kernel<4>", "\0", "é" * 9):
        assert classify(name) == Label("other", "")


HOSTILE = "a ( < moe_ MoE_x e2m1 BlockScaled Marlin<1125899906909960l, aten:: bmm_ fused_moe_ expandInputRowsKernel<"
HOSTILE += " triton_ sm90_fp8_ flash:: grouped All ck_tile:: 11111111111111111111 \"' <script>"


@pytest.mark.parametrize("piece", [*HOSTILE.split(), "\n", "\t", "\0", " "])
def test_hostile_repetition_of_100_kb_ends(piece: str) -> None:
    long = piece * (100_000 // len(piece))
    for name in (long, f"GroupProblemShape{long}"):
        assert classify(name) == naive(name[:SEARCHED])


def test_no_more_of_a_name_is_searched_than_said() -> None:
    padding = "x" * SEARCHED
    assert classify(f"{padding}GroupProblemShape") == Label("other", "")
    assert classify(f"fused_moe_kernel_{padding}") == classify("fused_moe_kernel")
    assert max(len(row[0]) for row in NAMES) < SEARCHED


@given(st.text(max_size=200), st.sampled_from([row[0] for row in NAMES]), st.integers(0, 400))
@settings(max_examples=60)
def test_any_string_is_classified_as_the_rules_say(text: str, name: str, at: int) -> None:
    assert classify(text) == naive(text)
    mixed = name[:at] + text + name[at:]
    assert classify(mixed) == naive(mixed)
    assert classify(mixed).category in CATEGORIES


# two names of the facts lack the template's arguments, in which alone the kind of the GEMM is told
EITHER = ["moe_gemm or gemm", "moe_gemm if GemmType grouped, else gemm"]
# What the words of facts/kernels.tsv are here, by ours, without what stands in parentheses there. A row of several
# kernels of linear attention ends with a norm. What sorts and picks is sampling by its name, whoever uses it.
OURS = {
    "expert_gemm": [
        *EITHER,
        "moe_gemm",
        "moe_gemm FP4",
        "moe_gemm+finalize",
        "moe_gemm \u2013 non-grouped template ⇒ gemm",
    ],
    "dense_gemm": ["gemm", *EITHER],
    "routing_permute": ["moe_routing", "moe_permute", "moe_permute+quant", "moe_finalize", "moe_finalize/permute"],
    "activation": ["moe_act", "moe_act+quant", "act", "other"],  # kernels_more.tsv knows Kimi's situ, once "other"
    "allreduce": ["moe_comm", "comm", "comm / comm_norm", "comm_norm"],
    "quant_dequant": ["quant"],
    "attention": ["attention", "attention/norm"],
    "norm": ["norm", "attention/norm"],
    "rope_kv": ["rope_kv"],
    "sampling": ["sampling", "sampling / routing", "sampling/other"],
    "elementwise": ["elementwise"],
    "memory": ["memory", "memory; one memset per MoE layer belongs to GEMM2's fused finalize"],
    "other": ["other"],
}
# the word alone is "gemm": only a kernel that calls itself a router's is the gate's by its name
ROUTERS = {"gemm (router)": {"gate_gemm"}, "gemm (router, gpt-oss)": {"dense_gemm"}}
# what a cell shortens because the name before it says the rest
SHORT = {
    "DtoH": "Memcpy DtoH",
    "DtoD": "Memcpy DtoD",
    "…_sm80_kernel_nl_tiled": "fmha_v2_flash_attention_bf16_…_sm80_kernel_nl_tiled",
    "…KernelOptContext": "applyMLARopeAndAssignQKVKernelOptContext",
}
# of match_on: what is no part of a name, and what names built from the rest would not be right
REMARKS = {"same", "\u2013", "table", "functor name"}
BUILT = {
    "same + finalize_fusion": ["blockscaled_contiguous_grouped_gemm_finalize_fusion"],
    "GroupProblemShape, BlockScaled": ["GemmUniversal<GroupProblemShape<int>, MainloopBlockScaled<4>>"],
    "deep_gemm::fp8_gemm_kernel + Grouped": ["deep_gemm::fp8_gemm_kernel<64, GroupedWithOffsetScheduler>"],
    "GemmUniversal and not GroupProblemShape": ["cutlass::device_kernel<cutlass::gemm::kernel::GemmUniversal<int>>"],
    "exact kernel_mha": ["kernel_mha", "kernel_mha_sm90"],
    "flashinfer::Batch": ["void flashinfer::BatchDecodeWithPagedKVCacheKernel<8u>"],
    "^triton_ + norm/rsqrt": ["triton_red_fused_native_layer_norm_0", "triton_per_fused_mul_rsqrt_1"],
    "^triton_poi_, ^triton_red_, ^triton_per_": ["triton_poi_fused_add_0", "triton_red_fused_1", "triton_per_fused_2"],
    "at::native::.*elementwise_kernel": ["void at::native::unrolled_elementwise_kernel<CUDAFunctor_add<int>>"],
    "^bmm_Bfloat16_E4m3": ["bmm_Bfloat16_E4m3E4m3_Fp32_t128x8x128"],
}


def split(text: str) -> list[str]:
    """The names of a cell: apart at commas and slashes outside all brackets."""
    depth, names = 0, [""]
    for place, letter in enumerate(text):
        depth += (letter in "<([") - (letter in ">)]")
        if depth <= 0 and (letter == "," or text[place - 1 : place + 2] == " / "):
            names.append("")
        else:
            names[-1] += letter
    return [each.strip() for each in names if each.strip()]


def without_remarks(text: str) -> str:
    return re.sub(r"\s*\(.*?\)(?=\s|$|,|;)", "", text).strip()


@pytest.mark.skipif(not FACTS.is_file(), reason="shared facts absent: kernels.tsv is not beside the checkout")
def test_every_row_of_the_facts_lands_in_its_category() -> None:
    rows = [line.split("\t") for line in FACTS.read_text(encoding="utf-8").splitlines()[1:] if line]
    assert len(rows) > 100
    wrong = []
    for example, match_on, label_text, _ in rows:
        plain = without_remarks(label_text.split(" (last")[0])
        expected = ROUTERS.get(label_text) or {each for each, their_labels in OURS.items() if plain in their_labels}
        assert expected, f"no mapping for {label_text}"
        names = [example]
        for name in split(example):
            names += [SHORT.get(name, name)] if not name.startswith("<") else []
        key = without_remarks(match_on)
        parts = [] if key in REMARKS else split(key)
        whole = "void a::{}<float, 8>(float*, int)"
        built = [f"{part[1:]}tst_64x8" if part[0] == "^" else whole.format(part) for part in parts]
        names += BUILT.get(key, built)
        wrong += [(name, classify(name)) for name in names if classify(name).category not in expected]
    assert wrong == []


@pytest.mark.skipif(not MORE_FACTS.is_file(), reason="shared facts absent: kernels_more.tsv is not beside the checkout")
def test_every_name_of_the_later_facts_is_of_its_category() -> None:
    rows = [line.split("\t") for line in MORE_FACTS.read_text(encoding="utf-8").splitlines()[1:] if line]
    assert len(rows) > 100
    assert [
        (name, classify(name)) for category, name, _ in rows if classify(name).category not in category.split("|")
    ] == []


@pytest.mark.skipif(not TRACES.is_dir(), reason="shared data absent: no traces of vLLM are beside the checkout")
@pytest.mark.parametrize("file", sorted(TRACES.glob("*.json.gz")), ids=lambda file: file.name)
def test_vllm_traces_are_classified(file: Path) -> None:
    time: Counter[str] = Counter()
    for event in json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]:
        if event.get("ph") == "X" and event.get("cat") == "kernel":
            time[event["name"]] += event["dur"]
    total = sum(time.values())
    by: Counter[str] = Counter()
    for name, spent in time.items():
        by[classify(name).category] += spent / total
    assert 1 - by["other"] >= 0.98
    assert by["expert_gemm"] == pytest.approx(time["fused_moe_kernel"] / total)
    if "dummy-bf16-b8" in file.name:
        assert 0.66 <= by["expert_gemm"] <= 0.68
