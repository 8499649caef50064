"""What the TensorRT-LLM engine refuses, and how it fails: in one sentence, leaving nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moe_eval.checkpoint import precision
from moe_eval.data.window import Window
from moe_eval.engines.base import GenerationRequest
from moe_eval.engines.served.checkpoint import read_model
from moe_eval.engines.served.plan import Placement, make
from moe_eval.engines.trtllm import observe
from moe_eval.engines.trtllm.engine import TrtllmEngine
from moe_eval.engines.trtllm.installed import TRTLLM
from moe_eval.engines.trtllm.workers import descendants
from moe_eval.errors import EngineError, UsageError
from moe_eval.machine.hardware import Gpu
from tests.conftest import SHIPPED
from tests.engines.trtllm.conftest import ALL, EVERY, NEWEST, OLDEST, Load, settings

A100 = Gpu("NVIDIA A100-SXM4-80GB", "8.0", 85 << 30, None)
ADA = Gpu("NVIDIA L40S", "8.9", 48 << 30, None)
H100 = Gpu("NVIDIA H100 80GB HBM3", "9.0", 80 << 30, None)
B200 = Gpu("NVIDIA B200", "10.0", 180 << 30, None)
RTX = Gpu("NVIDIA RTX PRO 6000 Blackwell", "12.0", 96 << 30, None)
T4 = Gpu("Tesla T4", "7.5", 16 << 30, None)


def modelopt(kind: str, **more: str) -> dict[str, Any]:
    return {"files": {"hf_quant_config.json": {"quantization": {"quant_algo": kind, **more}}}}


BF16: dict[str, Any] = {}
FP8 = modelopt("FP8", kv_cache_quant_algo="FP8")
NVFP4 = modelopt("NVFP4")
FP8_BLOCK = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}


def refusal(act: Callable[[], object], kind: type[Exception] = UsageError) -> str:
    before = descendants()
    with pytest.raises(kind) as refused:
        act()
    assert descendants() <= before
    sentence = str(refused.value)
    assert sentence
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize(
    ("form", "held", "gpu", "backend", "runs"),
    [
        (BF16, "bf16", T4, "auto", False),
        (BF16, "bf16", H100, "DEEPGEMM", False),
        (FP8_BLOCK, "fp8_block", A100, "auto", False),
        (FP8_BLOCK, "fp8_block", ADA, "auto", False),
        (FP8_BLOCK, "fp8_block", H100, "DEEPGEMM", False),
        (FP8_BLOCK, "fp8_block", B200, "cutlass", False),
        (FP8, "fp8", A100, "auto", False),
        (NVFP4, "nvfp4", A100, "auto", False),
        (NVFP4, "nvfp4", H100, "auto", False),
        (NVFP4, "nvfp4", RTX, "TRTLLM", False),
        (BF16, "bf16", A100, "auto", True),
        (BF16, "bf16", H100, "TRITON", True),
        (FP8, "fp8", ADA, "auto", True),
        (FP8, "fp8", H100, "CUTLASS", True),
        (FP8_BLOCK, "fp8_block", H100, "cutlass", True),
        (FP8_BLOCK, "fp8_block", B200, "TRTLLM", True),
        (NVFP4, "nvfp4", B200, "TRTLLM", True),
        (NVFP4, "nvfp4", B200, "auto", True),
        (NVFP4, "nvfp4", RTX, "CUTLASS", True),
    ],
    ids=lambda value: value.sm if isinstance(value, Gpu) else "" if isinstance(value, dict) else str(value),
)
def test_precisions_and_the_gpus_that_run_them(
    spoil: Callable[..., Path],
    gpus: Callable[..., None],
    *,
    form: dict[str, Any],
    held: str,
    gpu: Gpu,
    backend: str,
    runs: bool,
) -> None:
    gpus(gpu)
    given = settings(spoil(dtype="bfloat16", **form), dtype="auto")
    assert read_model(TRTLLM, given).precision == held
    place = Placement(1, in_process=True)
    if runs:
        make(TRTLLM, given, {"moe_backend": backend}, place, None)
        return
    said = refusal(lambda: make(TRTLLM, given, {"moe_backend": backend}, place, None))
    assert said.startswith("TensorRT-LLM cannot run ")
    assert f"in {held} on {gpu.name}: " in said
    assert f"SM{gpu.sm}" in said
    assert backend == "auto" or backend.lower() in said.lower()


@NEWEST
def test_the_machine_is_looked_at_before_the_library(
    load: Load, spoil: Callable[..., Path], gpus: Callable[..., None], events: Any
) -> None:
    gpus(H100)
    assert "nvfp4" in refusal(lambda: load(spoil(**NVFP4), dtype="auto"))
    assert events("import") == []


@NEWEST
def test_a_modelopt_checkpoint_is_labelled_by_its_files(
    load: Load, spoil: Callable[..., Path], gpus: Callable[..., None]
) -> None:
    gpus(ADA)
    facts = load(spoil(**FP8), precision="fp8").facts
    assert (facts.precision, facts.kv_cache_dtype, facts.device_name) == ("fp8", "fp8", "NVIDIA L40S")


@OLDEST
@pytest.mark.parametrize("method", ["bitsandbytes", "awq", "gptq", "int8"])
def test_quantisations_that_no_reader_of_the_library_knows(load: Load, spoil: Callable[..., Path], method: str) -> None:
    said = refusal(lambda: load(spoil(quantization_config={"quant_method": method})))
    assert f"is quantised as {method}, which moe_eval cannot run" in said


COMPRESSED = {"quant_method": "compressed-tensors"}


def compressed(kind: str, bits: int, strategy: str, **more: Any) -> dict[str, Any]:
    weights = {"type": kind, "num_bits": bits, "strategy": strategy}
    return COMPRESSED | {"config_groups": {"group_0": {"weights": weights}}} | more


@OLDEST
@pytest.mark.parametrize(
    ("form", "says"),
    [
        ({"quant_method": "fp8", "activation_scheme": "static"}, "reads as blocks of 128x128 that it does not have"),
        ({"quant_method": "fp8", "activation_scheme": "dynamic"}, "does not read as quantised at all"),
        ({"quant_method": "fp8"}, "does not read as quantised at all. Give a ModelOpt checkpoint"),
        (compressed("float", 8, "tensor"), "float-8-tensor, which TensorRT-LLM refuses. Give a ModelOpt"),
    ],
)
def test_forms_that_the_library_misreads(
    load: Load, spoil: Callable[..., Path], events: Any, form: dict[str, Any], says: str
) -> None:
    assert says in refusal(lambda: load(spoil(quantization_config=form), dtype="auto"))
    assert events("import") == []


RC20 = pytest.mark.parametrize("version", ["1.3.0rc20"], indirect=True, scope="session")


@RC20
@pytest.mark.parametrize(
    ("form", "gpu", "options", "says"),
    [
        (compressed("float", 4, "tensor_group"), B200, {}, "1.3.0rc20 does not read. Install a version >=1.3.0rc27"),
        ({"quant_method": "nvfp4"}, B200, {}, "Install a version >=1.3.0rc27, or"),
        ({"quant_method": "mxfp8"}, B200, {}, "mxfp8, which TensorRT-LLM 1.3.0rc20 does not read. Install"),
        (
            FP8_BLOCK["quantization_config"],
            B200,
            {},
            "not supported on SM100 with moe_backend=AUTO (DEEPGEMM, TRTLLM, ",
        ),
    ],
)
def test_what_the_installed_version_cannot_do_is_refused_before_it_loads(
    load: Load,
    spoil: Callable[..., Path],
    gpus: Callable[..., None],
    events: Any,
    *,
    form: dict[str, Any],
    gpu: Gpu,
    options: dict[str, Any],
    says: str,
) -> None:
    gpus(gpu)
    assert says in refusal(lambda: load(spoil(quantization_config=form), dtype="auto", options=options))
    assert events("construct") == []


def read(folder: Path) -> tuple[str, str | None]:
    model = read_model(TRTLLM, settings(folder, dtype="auto"))
    return model.precision, model.carried.kv_cache


@pytest.mark.parametrize(
    ("form", "held", "cache"),
    [
        ({"quant_method": "mxfp4"}, "mxfp4", None),
        ({"quant_method": "mxfp8"}, "mxfp8", None),
        ({"quant_method": "nvfp4"}, "nvfp4", None),
        (compressed("float", 8, "block", kv_cache_scheme={"num_bits": 8, "type": "float"}), "fp8_block", "fp8"),
        (compressed("float", 4, "tensor_group", kv_cache_scheme=None), "nvfp4", None),
        ({"quant_method": "modelopt", "quant_algo": "W4A16_NVFP4"}, "nvfp4-w4a16", None),
    ],
)
def test_forms_of_config_json(spoil: Callable[..., Path], form: dict[str, Any], held: str, cache: str | None) -> None:
    assert read(spoil(quantization_config=form)) == (held, cache)


@pytest.mark.parametrize(
    ("held", "requested", "observed", "gpu", "executed"),
    [
        ("fp8_block", "auto", "TrtllmTritonFp8BlockScalesImpl", RTX, "fp8_block-w8a16"),
        ("fp8_block", "auto", "CutlassFusedMoE", RTX, "fp8_block"),
        ("fp8_block", "auto", None, RTX, "fp8_block"),
        ("fp8_block", "auto", "DeepgemmCudaHopperFp8BlockScalesImpl", H100, "fp8_block"),
        ("nvfp4", "auto", "MarlinFusedMoE", H100, "nvfp4-w4a16"),
        ("nvfp4", "MARLIN", None, H100, "nvfp4-w4a16"),
        ("nvfp4-w4a16", "auto", None, H100, "nvfp4-w4a16"),
        ("mxfp4", "auto", "TritonFusedMoE", H100, "mxfp4-w4a16"),
        ("mxfp4", "auto", "TRTLLMGenFusedMoE", B200, "mxfp4"),
        ("bf16", "auto", "TritonFusedMoE", H100, "bf16"),
    ],
)
def test_the_precision_that_the_experts_compute_in(
    held: str, requested: str, observed: str | None, gpu: Gpu, executed: str
) -> None:
    assert observe.executed(held, requested, observed, (gpu,)) == executed


# facts 2026-11-26, 4: what AUTO and MARLIN are depends on the version
@pytest.mark.parametrize(
    ("held", "sm", "backend", "version", "runs"),
    [
        ("fp8_block", 100, "AUTO", "1.3.0rc20", False),
        ("fp8_block", 100, "AUTO", "1.4.0rc1", True),
        ("fp8_block", 100, "TRTLLM", "1.2.0", True),
        ("fp8_block", 90, "AUTO", "1.2.0", True),
        ("fp8_block", 90, "VANILLA", "1.2.0", True),
        ("nvfp4-w4a16", 90, "MARLIN", "1.3.0rc19", False),
        ("nvfp4-w4a16", 90, "MARLIN", "1.3.0rc20", True),
        ("nvfp4-w4a16", 120, "AUTO", "1.4.0rc1", True),
        ("nvfp4", 120, "AUTO", "1.2.0", False),
        ("nvfp4", 100, "VANILLA", "1.2.0", True),
        ("mxfp8", 100, "CUTLASS", "1.4.0rc1", True),
        ("mxfp8", 90, "CUTLASS", "1.4.0rc1", False),
        ("mxfp4", 90, "TRITON", "1.2.0", True),
    ],
)
def test_what_a_version_runs(held: str, sm: int, backend: str, version: str, *, runs: bool) -> None:
    assert (precision.why_not("trtllm", held, sm, backend, version) is None) == runs


@OLDEST
@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"precision": "fp8", "dtype": "auto"}, "is bf16, not precision=fp8. Give a checkpoint in fp8"),
        ({"precision": "bf16", "dtype": "float32"}, "is fp32, not precision=bf16"),
        ({"dtype": "int8"}, "dtype=int8 is not supported"),
        ({"device": "cpu"}, "TensorRT-LLM runs on NVIDIA GPUs only, not on device=cpu"),
        ({"options": {"worker": "in_process", "tensor_parallel_size": 2}}, "worker=in_process is for one GPU, and"),
        ({"options": {"tensor_parallel_size": 2}}, "ask for 2 GPUs, and this machine has 0"),
        ({"options": {"tensor_parallel_size": 64}}, "trtllm-llmapi-launch"),
        ({"options": {"tensor_parallel_size": 2, "pipeline_parallel_size": "3"}}, "ask for 6 GPUs"),
        ({"max_length": 1023}, "max_length=1023 does not fit"),
        ({"max_length": 0}, "Give 16 to 1022"),
        ({"max_length": 100, "options": {"max_num_tokens": 50}}, "Give max_num_tokens=102 or more"),
    ],
)
def test_settings_that_make_no_sense(load: Load, events: Any, given: dict[str, Any], says: str) -> None:
    assert says in refusal(lambda: load(**given))
    assert events("construct") == []


@OLDEST
def test_two_gpus_where_there_is_one(load: Load, gpus: Callable[..., None]) -> None:
    gpus(H100)
    assert "this machine has 1. Give a smaller" in refusal(lambda: load(options={"tensor_parallel_size": 2}))


@OLDEST
@pytest.mark.parametrize("stated", ["1.0.0", "0.21.0", "1.0.0rc4"])
def test_a_version_that_is_too_old(load: Load, events: Any, monkeypatch: pytest.MonkeyPatch, stated: str) -> None:
    monkeypatch.setenv("TRTLLM_DOUBLE", f"version={stated}")
    assert f"TensorRT-LLM {stated} is too old" in refusal(load)
    assert events("construct") == []


@OLDEST
@pytest.mark.parametrize("stated", ["1.1.0", "1.1.0rc5", "a-build-of-mine"])
def test_a_version_that_is_not(load: Load, monkeypatch: pytest.MonkeyPatch, stated: str) -> None:
    monkeypatch.setenv("TRTLLM_DOUBLE", f"version={stated}")
    assert load().facts.version == stated


@OLDEST
@pytest.mark.parametrize("keep", [0, 5, 300, -1])
def test_weights_that_are_cut_short(load: Load, spoil: Callable[..., Path], events: Any, keep: int) -> None:
    file = spoil() / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert "model.safetensors is corrupt or cut short" in refusal(lambda: load(file.parent))
    assert events("import") == []


@EVERY
@pytest.mark.parametrize("worker", ["in_process", "spawned"])
@pytest.mark.parametrize(
    ("knob", "says"), [("no_gpu", "finds no NVIDIA GPU here"), ("oom_load", "does not suffice for loading")]
)
def test_a_library_that_does_not_come_up(
    load: Load, monkeypatch: pytest.MonkeyPatch, *, knob: str, says: str, worker: str, version: str
) -> None:
    if (worker, knob) == ("spawned", "oom_load") and version != "1.3.0rc8":
        pytest.skip("seconds for the start of a process; one version is enough")
    monkeypatch.setenv("TRTLLM_DOUBLE", knob)
    assert says in refusal(lambda: load(options={"worker": worker}))


@ALL
def test_a_cache_that_memory_does_not_hold(load: Load, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setenv("TRTLLM_DOUBLE", "kv_short")
    share = "larger" if version.startswith("1.4") else "smaller"
    assert f"Give a {share} kv_cache_free_gpu_memory_fraction" in refusal(load)


@NEWEST
def test_a_checkpoint_that_the_library_cannot_load(load: Load, spoil: Callable[..., Path]) -> None:
    said = refusal(lambda: load(spoil(hidden_size="wide")))
    assert said.startswith("TensorRT-LLM 1.4.0rc1 cannot load ")


def fault_at(engine: TrtllmEngine, knob: str, after: int) -> str:
    """The knob for a request still to come."""
    return f"{knob}={engine.session.llm._executor.engine.started + after}"


MEMORY = ("max_num_tokens", "max_batch_size", "kv_cache_free_gpu_memory_fraction")


def test_memory_that_runs_out_while_scoring(engine: TrtllmEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTLLM_DOUBLE", fault_at(engine, "oom_at", 3))
    finished: list[int] = []
    windows = [Window((1, 2), (3, each)) for each in range(6)]
    said = refusal(lambda: engine.score(windows, done=lambda index, _: finished.append(index)))
    assert all(name in said for name in MEMORY)
    assert finished == [0, 1], "what was scored before is told"
    monkeypatch.delenv("TRTLLM_DOUBLE")
    assert len(engine.score(windows)) == 6


def test_a_request_that_fails(engine: TrtllmEngine, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTLLM_DOUBLE", fault_at(engine, "fail_at", 1))
    said = refusal(lambda: engine.score([Window((1, 2), (3,))]), EngineError)
    assert said.startswith(f"TensorRT-LLM {version} failed while scoring ")
    assert "illegal memory access" in said


def test_fewer_tokens_than_were_asked_for(engine: TrtllmEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTLLM_DOUBLE", "short_output")
    said = refusal(lambda: engine.generate([[1, 2]], GenerationRequest(5, ignore_eos=True)), EngineError)
    assert "generated 4 tokens instead of 5" in said


@EVERY
def test_a_failure_in_the_self_test_closes_the_library(
    load: Load, events: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRTLLM_DOUBLE", "fail_at=2")
    assert "failed while testing" in refusal(load, EngineError)
    assert len(events("shutdown")) == 1


# fact sheet, section 7: which GPU runs which precision, and with which experts; None for any
CAN = [
    *[("bf16", sm, None) for sm in (80, 89, 90, 100, 103, 120, 121)],
    *[("bf16", 80, "CUTLASS"), ("bf16", 90, "TRITON"), ("fp16", 90, "cutlass")],
    *[("fp8", sm, backend) for sm in (89, 90, 100, 120) for backend in (None, "CUTLASS")],
    *[("fp8_block", 90, "CUTLASS"), ("fp8_block", 120, "CUTLASS"), ("fp8_block", 90, None)],
    *[("fp8_block", sm, backend) for sm in (100, 103) for backend in ("TRTLLM", "DEEPGEMM", None)],
    *[("nvfp4", sm, backend) for sm in (100, 103) for backend in ("CUTLASS", "TRTLLM", "CUTEDSL", "DENSEGEMM")],
    *[("nvfp4", sm, backend) for sm in (120, 121) for backend in ("CUTLASS", None)],
]
CANNOT = [
    *[("bf16", 75, None), ("fp16", 70, None), ("bf16", 80, "TRITON"), ("bf16", 90, "DEEPGEMM")],
    *[("fp8", sm, None) for sm in (75, 80, 86)],
    *[("fp8_block", sm, None) for sm in (80, 86, 89, 121)],
    *[("fp8_block", sm, "CUTLASS") for sm in (89, 100, 103)],
    *[("fp8_block", sm, "DEEPGEMM") for sm in (90, 120)],
    *[("fp8_block", 90, "TRTLLM"), ("fp8_block", 120, "TRTLLM")],
    *[("nvfp4", sm, None) for sm in (80, 89, 90)],
    *[("nvfp4", sm, "TRTLLM") for sm in (90, 120)],
    *[("nvfp4", 100, "DEEPGEMM"), ("nvfp4", 120, "DENSEGEMM")],
]


@pytest.mark.parametrize(("held", "sm", "backend"), CAN)
def test_what_a_gpu_can_run(held: str, sm: int, backend: str | None) -> None:
    assert precision.why_not("trtllm", held, sm, backend) is None


@pytest.mark.parametrize(("held", "sm", "backend"), CANNOT)
def test_what_a_gpu_cannot_run(held: str, sm: int, backend: str | None) -> None:
    said = precision.why_not("trtllm", held, sm, backend)
    assert said is not None
    assert f"SM{sm}" in said


def test_the_shipped_checkpoint_is_what_it_says() -> None:
    model = read_model(TRTLLM, settings(SHIPPED, dtype="auto"))
    assert (model.precision, model.dtype, model.carried.method) == ("bf16", "bfloat16", "none")
