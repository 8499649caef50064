"""What the user is told to do about a failure of TensorRT-LLM."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from moe_eval.engines.served.package import describe_failure
from moe_eval.engines.trtllm.advice import known_bad
from moe_eval.engines.trtllm.installed import TRTLLM
from moe_eval.errors import EngineError, UsageError
from moe_eval.machine.hardware import Gpu

B200 = Gpu("NVIDIA B200", "10.0", 180 << 30, None)
SHORT = "insufficient GPU memory for the KV cache"
# issue 5872: its lines, and what had been created before
CREATED = (
    "Executor creation failed due to insufficient GPU memory.\n\nThe following component could not be created: {}\n"
    "Previously created components:\nInitial KV cache (temporary for KV cache size estimation): 110.70 / 110.33"
)
AGAIN = (
    "An attempt has been made to start a new process before the current process has finished its bootstrapping phase."
)


@pytest.mark.parametrize(
    ("text", "version", "says"),
    [
        (SHORT, "1.4.0rc1", "a larger kv_cache_free_gpu_memory_fraction, a smaller max_batch_size"),
        (SHORT, "1.2.0", "a smaller kv_cache_free_gpu_memory_fraction, max_num_tokens or max_batch_size"),
        (CREATED.format("KV cache"), "1.4.0rc1", "a larger kv_cache_free_gpu_memory_fraction"),
        (CREATED.format("KV cache"), "1.3.0rc20", "a smaller kv_cache_free_gpu_memory_fraction"),
        (CREATED.format("Model"), "1.4.0rc1", "does not suffice for loading M. Give a smaller max_num_tokens"),
        ("No available memory for the KV cache", "1.4.0rc4", "a larger kv_cache_free_gpu_memory_fraction"),
        ("CUDA out of memory. Tried to allocate 2 GiB", "1.4.0rc1", "Give a smaller max_num_tokens"),
        ("[Autotuner] Failed to run TMA WS grouped gemm", "1.3.0rc8", "Add enable_autotuner=false"),
        ("libmpi.so.40: cannot open shared object file", "1.2.0", "apt-get install libopenmpi-dev"),
        (AGAIN, "1.2.0", 'under `if __name__ == "__main__":`'),
    ],
)
def test_a_failure_that_the_user_can_mend(text: str, version: str, says: str) -> None:
    error = describe_failure(TRTLLM, RuntimeError(text), version, "M", "loading")
    assert isinstance(error, UsageError)
    assert says in str(error)


def test_a_worker_without_a_cause_is_quoted() -> None:
    error = RuntimeError("Executor worker returned error")
    message = str(describe_failure(TRTLLM, error, "1.2.0", "M", "loading", printed="ValueError: no kernel"))
    assert message.endswith("RuntimeError: Executor worker returned error, its worker printed: ValueError: no kernel).")
    memory = describe_failure(
        TRTLLM, error, "1.2.0", "M", "loading", printed="torch.OutOfMemoryError: CUDA out of memory"
    )
    assert "The GPU's memory does not suffice for loading M" in str(memory)
    other = describe_failure(TRTLLM, RuntimeError("of its own"), "1.2.0", "M", "scoring", printed="no matter")
    assert isinstance(other, EngineError)
    assert "no matter" not in str(other)


@pytest.mark.parametrize(
    ("version", "architecture", "precision", "gpus", "options", "says"),
    [
        ("1.3.0rc24", "Qwen3MoeForCausalLM", "bf16", (), (), "1.3.0rc24 lists a known issue"),
        ("1.3.0rc25", "Qwen3MoeForCausalLM", "bf16", (), (), None),
        ("1.3.0rc24", "MixtralForCausalLM", "bf16", (), (), None),
        ("1.1.0", "Qwen3MoeForCausalLM", "fp8_block", (B200,), (), "issue 9021"),
        ("1.1.0", "Qwen3MoeForCausalLM", "fp8_block", (), (), None),
        ("1.3.0rc26", "Qwen3MoeForCausalLM", "bf16", (), ("enable_lora",), "ignores LoRA on the routed experts"),
        ("1.3.0rc26", "Qwen3MoeForCausalLM", "bf16", (), ("enable_autotuner",), None),
    ],
)
def test_versions_that_are_known_to_be_bad(
    *,
    version: str,
    architecture: str,
    precision: str,
    gpus: tuple[Gpu, ...],
    options: tuple[str, ...],
    says: str | None,
) -> None:
    model: Any = SimpleNamespace(architecture=architecture, precision=precision)
    sentences = known_bad(version, model, options, gpus)
    assert len(sentences) == (says is not None)
    assert says is None or says in sentences[0]
