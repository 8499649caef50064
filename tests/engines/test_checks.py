"""What engines refuse before their library is imported: of weights, parallel sizes, names and GPUs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moe_eval.engines import registry, tables
from moe_eval.engines.base import EngineSettings
from moe_eval.errors import UsageError
from moe_eval.machine.hardware import Gpu
from tests.conftest import SHIPPED

H100 = Gpu("NVIDIA H100", "9.0", 80 << 30, "GPU-0")
A100 = Gpu("NVIDIA A100", "8.0", 80 << 30, "GPU-0")
CONFIG: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "architectures": ["Qwen3MoeForCausalLM"],
    "torch_dtype": "bfloat16",
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "num_experts": 60,
    "vocab_size": 100,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint of 12 heads and 60 experts without weights."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def check(
    engine: str, path: Path, gpus: int = 8, gpu: Gpu = H100, *, reads_weights: bool = False, **options: Any
) -> None:
    precision = options.pop("precision", None)
    settings = EngineSettings(str(path), precision=precision, options=options)
    registry.check_arm(engine, settings, [gpu] * gpus, reads_weights=reads_weights)


@pytest.mark.parametrize("engine", ["vllm", "trtllm"])
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tensor_parallel_size": 16}, "The parallel sizes ask for 16 GPUs, and this machine has 8. Give"),
        ({"tensor_parallel_size": 8}, "tensor_parallel_size=8 does not divide the 12 attention heads of"),
        ({"tensor_parallel_size": 0}, "tensor_parallel_size=0 is not a whole number from 1"),
        ({"tensor_paralel_size": 2}, "has no setting tensor_paralel_size. Did you mean tensor_parallel_size?"),
        ({"tp": 2}, "has no setting tp. Did you mean tensor_parallel_size?"),
        ({"worker": "in_process", "tensor_parallel_size": 2}, "worker=in_process is for one GPU"),
        ({"worker": "elsewhere"}, "worker=elsewhere does not exist"),
        ({"precision": "nvfp4"}, "is bf16, not precision=nvfp4"),
        ({"model": "X"}, "model is not an option of moe_eval. Give pretrained."),
    ],
)
def test_what_an_engine_could_not_load_is_refused(
    folder: Path, engine: str, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        check(engine, folder, **options)


@pytest.mark.parametrize("engine", ["vllm", "trtllm"])
def test_key_value_heads_are_divided_or_repeated_as_wholes(tmp_path: Path, engine: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "num_key_value_heads": 4}))
    for size in (1, 2, 4):
        check(engine, tmp_path, tensor_parallel_size=size)
    with pytest.raises(UsageError, match="tensor_parallel_size=6 neither divides the 4 key-value heads"):
        check(engine, tmp_path, tensor_parallel_size=6)
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "num_key_value_heads": 2}))
    check(engine, tmp_path, tensor_parallel_size=4)


@pytest.mark.parametrize(
    ("engine", "options"),
    [
        ("vllm", {"tensor_parallel_size": 8, "enable_expert_parallel": True}),
        ("trtllm", {"tensor_parallel_size": 8, "moe_expert_parallel_size": 8}),
    ],
)
def test_experts_that_do_not_divide_are_refused(tmp_path: Path, engine: str, options: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "num_attention_heads": 16}))
    with pytest.raises(UsageError, match="Expert parallelism over 8 GPUs does not divide the 60 experts"):
        check(engine, tmp_path, **options)
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "num_attention_heads": 16, "num_experts": 64}))
    check(engine, tmp_path, **options)


@pytest.mark.parametrize("engine", ["vllm", "trtllm"])
@pytest.mark.parametrize("options", [{}, {"tensor_parallel_size": 4}, {"tensor_parallel_size": 2, "worker": "spawned"}])
def test_what_an_engine_can_load_passes(folder: Path, engine: str, options: dict[str, Any]) -> None:
    check(engine, folder, **options)


def test_random_weights_need_no_files_on_any_number_of_gpus(folder: Path) -> None:
    for count in (1, 2):
        check("vllm", folder, reads_weights=True, weights="random", tensor_parallel_size=count)


@pytest.mark.parametrize("engine", registry.ENGINES)
def test_weights_that_are_not_there_are_told(folder: Path, engine: str) -> None:
    with pytest.raises(UsageError, match="holds no weights"):
        check(engine, folder, reads_weights=True)
    check(engine, folder)
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UsageError, match=r"lacks 2 of the files that its index names \(model-1.safetensors\)"):
        check(engine, folder, reads_weights=True)
    check(engine, SHIPPED, reads_weights=True)


def test_a_precision_that_the_gpu_does_not_run_is_told(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"vLLM cannot run .* in fp8_block on NVIDIA A100: not supported on SM80"):
        check("vllm", folder, gpu=A100, precision="fp8_block")
    check("vllm", folder, precision="fp8_block")


@pytest.mark.parametrize(
    ("engine", "name", "wrong", "right"),
    [
        ("vllm", "gpu_memory_utilization", (float("nan"), 7, 0, "high", True, [0.5], 1.001, -0.5), (0.9, "0.5", 1)),
        ("trtllm", "kv_cache_free_gpu_memory_fraction", (float("nan"), 2, "1e999"), (0.85,)),
        ("transformers", "max_tokens_per_batch", (10**26, 10**5000, 0, 1.5, "1_0", "9" * 5000), (4096, "1")),
        ("vllm", "max_num_seqs", (-1, 10**10, "two", float("inf")), (256,)),
        ("vllm", "max_model_len", (-2, 10**10), (-1, 4096)),
        ("vllm", "seed", (-1, 2**32), (0, 2**32 - 1)),
        ("trtllm", "max_num_tokens", (0, "", "8k"), (8192,)),
    ],
)
def test_numbers_have_bounds(engine: str, name: str, wrong: tuple[object, ...], right: tuple[object, ...]) -> None:
    for value in wrong:
        with pytest.raises(
            UsageError, match=rf"^{name}=.{{0,70}} is not a (whole )?number from .* to .*\. Give one\.$"
        ):
            registry.check_options(engine, {name: value})
    for value in (*right, None):
        registry.check_options(engine, {name: value})


def test_bounds_are_of_arguments_that_an_engine_takes() -> None:
    names = {name for engine in registry.ENGINES for name in registry.settings_of(engine)}
    names |= {name for engine in registry.ENDPOINTS for name in registry.settings_of(engine)}
    assert tables._bounds().keys() <= names
