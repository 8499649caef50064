"""Where each precision runs, against a table of its own and not against the rows of support.toml."""

from __future__ import annotations

import re

import pytest
from packaging.specifiers import SpecifierSet

from moe_eval.checkpoint import precision
from moe_eval.engines.registry import ENGINES
from moe_eval.errors import UsageError

GPUS = (75, 80, 86, 89, 90, 100, 103, 120, 121)

# written down from the tables of TensorRT-LLM's fused_moe_cutlass.py and MOE_DEVELOPER_GUIDE.md, any backend
TRTLLM = {
    "bf16": {80, 86, 89, 90, 100, 103, 120, 121},
    "fp16": {80, 86, 89, 90, 100, 103, 120, 121},
    "fp8": {89, 90, 100, 103, 120, 121},
    "fp8_block": {90, 100, 103, 120},
    "nvfp4": {100, 103, 120, 121},
    "nvfp4-w4a16": {80, 86, 89, 90, 100, 103, 120, 121},  # with CUTLASS where the checkpoint is W4A16_NVFP4
    "mxfp4": {90, 100, 103},
    "mxfp8": {100, 103},
}
VLLM = {
    "bf16": TRTLLM["bf16"],
    "fp16": set(GPUS),
    "fp8": TRTLLM["fp8"],
    "fp8_channel": TRTLLM["fp8"],
    "fp8_channel-w8a16": {75, 80, 86},
    "nvfp4": TRTLLM["nvfp4"],
    "nvfp4-w4a16": {75, 80, 86, 89, 90},
    "fp8-w8a16": {75, 80, 86},
}
# the same tables by implementation of experts
BACKENDS = {
    ("bf16", "CUTLASS"): TRTLLM["bf16"],
    ("bf16", "TRITON"): {90},
    ("fp8", "CUTLASS"): TRTLLM["fp8"],
    ("fp8", "TRITON"): {90},
    ("fp8_block", "CUTLASS"): {90, 120},
    ("fp8_block", "TRTLLM"): {100, 103},
    ("fp8_block", "DEEPGEMM"): {100, 103},
    ("nvfp4", "CUTLASS"): TRTLLM["nvfp4"],
    ("nvfp4", "TRTLLM"): {100, 103},
    ("nvfp4", "CUTEDSL"): {100, 103, 120, 121},
    ("nvfp4", "DENSEGEMM"): {100, 103},
    ("nvfp4", "MARLIN"): set(),
    ("nvfp4-w4a16", "MARLIN"): {89, 90},
}


@pytest.mark.parametrize("sm", GPUS)
@pytest.mark.parametrize(("engine", "table"), [("trtllm", TRTLLM), ("vllm", VLLM)])
def test_a_precision_runs_where_the_table_says(engine: str, table: dict[str, set[int]], sm: int) -> None:
    runs = {name for name in table if precision.why_not(engine, name, sm) is None}
    assert runs == {name for name, gpus in table.items() if sm in gpus}


@pytest.mark.parametrize(("name", "backend"), BACKENDS)
def test_an_implementation_of_experts_runs_where_the_table_says(name: str, backend: str) -> None:
    runs = {sm for sm in GPUS if precision.why_not("trtllm", name, sm, backend) is None}
    assert runs == BACKENDS[name, backend]
    assert runs == {sm for sm in GPUS if precision.why_not("trtllm", name, sm, backend.lower()) is None}


def test_the_reason_names_the_gpu_and_what_it_would_take() -> None:
    assert precision.why_not("trtllm", "fp8", 80) == "not supported on SM80 (it needs SM89 or newer)"
    reason = precision.why_not("trtllm", "nvfp4", 90)
    assert reason.startswith("not supported on SM90 (it needs SM100 or SM103 or SM120 to SM121, or moe_backend=")
    assert "moe_backend=MARLIN for weight-only nvfp4-w4a16" in reason
    assert "weight-only" not in (precision.why_not("trtllm", "nvfp4", 80) or "")
    # a version without the weight-only kernel is not pointed to it
    assert "MARLIN" not in (precision.why_not("trtllm", "nvfp4", 90, version="1.2.0") or "MARLIN")
    assert precision.why_not("trtllm", "fp8_block", 90, "TRTLLM") == (
        "not supported on SM90 with moe_backend=TRTLLM (AUTO, CUTLASS, VANILLA can)"
    )


@pytest.mark.parametrize(
    ("version", "runs"),
    [
        *((version, False) for version in ("1.2.0", "1.3.0rc10")),
        *(
            (version, True)
            for version in (None, "1.3.0rc11", "1.3.0rc27", "1.3.0", "2.0.0.dev1", "of an unknown version")
        ),
    ],
)
def test_nvfp4_on_sm120_needs_a_version_that_has_it(version: str | None, runs: bool) -> None:
    reason = precision.why_not("trtllm", "nvfp4", 120, version=version)
    assert (reason is None) == runs
    if reason is not None:
        assert reason == f"not supported on SM120 by trtllm {version} (it needs >=1.3.0rc11)"
    assert precision.why_not("trtllm", "nvfp4", 100, version=version) is None


@pytest.mark.parametrize("engine", ["trtllm", "vllm"])
@pytest.mark.parametrize("sm", [sm for sm in GPUS if sm < 100])
def test_nvfp4_never_runs_where_only_weight_only_kernels_do(engine: str, sm: int) -> None:
    every = {backend for row in precision.support() for backend in row.moe_backends}
    for backend in (None, *every):
        assert precision.why_not(engine, "nvfp4", sm, backend) is not None


@pytest.mark.parametrize(
    ("held", "backend", "runs"),
    [
        ("nvfp4", None, "nvfp4"),
        ("nvfp4", "CUTLASS", "nvfp4"),
        ("nvfp4", "MARLIN", "nvfp4-w4a16"),
        ("nvfp4", "marlin", "nvfp4-w4a16"),
        ("fp8", "MARLIN", "fp8-w8a16"),
        ("fp8", "TRITON", "fp8"),
        ("bf16", "MARLIN", "bf16"),
        ("bf16", None, "bf16"),
    ],
)
def test_weight_only_kernels_make_another_precision(held: str, backend: str | None, runs: str) -> None:
    assert precision.executed(held, backend) == runs


@pytest.mark.parametrize(("engine", "name"), [("trtllm", "fp32"), ("transformers", "bf16"), ("unknown", "fp8")])
def test_what_no_row_speaks_of_is_left_to_the_engine(engine: str, name: str) -> None:
    assert precision.why_not(engine, name, 75) is None


def test_every_row_is_well_formed_and_names_its_source() -> None:
    rows = precision.support()
    assert len(rows) == len(set(rows))
    for row in rows:
        assert row.engine in ENGINES
        assert row.precision in (*precision.PRECISIONS, "mxfp4", "mxfp8", *precision.WEIGHT_ONLY.values())
        assert row.sm
        assert all(70 <= first <= last <= 999 for first, last in row.sm)
        assert row.moe_backends
        assert all(re.fullmatch("[A-Z_]+", backend) for backend in row.moe_backends)
        assert len(row.moe_backends) == len(set(row.moe_backends))
        SpecifierSet(row.versions)
        assert "int4" not in row.precision
        assert row.engine != "transformers"
        assert ("MARLIN" in row.moe_backends) <= (row.precision in precision.WEIGHT_ONLY.values())
        assert re.search(r"\.(py|md)\b|^docs/", row.source)


def test_a_precision_is_refused_with_what_there_is() -> None:
    precision.check("fp8", "x", ["bf16", "fp8"])
    with pytest.raises(UsageError, match=r"no precision .int4.\. Give one of bf16, fp16, fp32, fp8, fp8_channel"):
        precision.check("int4", "x", ["bf16"])
    with pytest.raises(UsageError, match=r"The x engine does not run precision fp8\. Give one of bf16, fp16"):
        precision.check("fp8", "x", ["bf16", "fp16"])
