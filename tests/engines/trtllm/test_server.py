"""An arm's settings as the YAML file of trtllm-serve."""

from __future__ import annotations

from moe_eval.engines.serving import ServeSettings
from moe_eval.engines.trtllm.server import llm_arguments

SERVING = ServeSettings(640, 60.0)


def test_settings_go_into_the_sections_that_have_them() -> None:
    options = {
        "tensor_parallel_size": 2,
        "moe_backend": "cutlass",
        "kv_cache_dtype": "fp8",
        "cuda_graph_batch_sizes": "1:8",
        "scheduler_config": '{"capacity_scheduler_policy": "MAX_UTILIZATION"}',
    }
    assert llm_arguments(options, SERVING) == {
        "max_seq_len": 642,
        "enable_iter_perf_stats": True,
        "kv_cache_config": {"enable_block_reuse": False, "dtype": "fp8"},
        "tensor_parallel_size": 2,
        "moe_config": {"backend": "CUTLASS"},
        "cuda_graph_config": {"batch_sizes": [1, 8]},
        "scheduler_config": {"capacity_scheduler_policy": "MAX_UTILIZATION"},
    }


def test_what_is_left_to_the_engine_or_turned_off() -> None:
    arguments = llm_arguments(
        {"moe_backend": "auto", "cuda_graph_batch_sizes": "none"}, ServeSettings(640, 60.0, prefix_caching=True)
    )
    assert "moe_config" not in arguments
    assert arguments["cuda_graph_config"] is None
    assert arguments["kv_cache_config"] == {"enable_block_reuse": True}
