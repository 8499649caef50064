"""Everything that touches lm-evaluation-harness."""

MODEL = "trtllm_moe"  # our name for `--model`
LATENCY, KERNELS = "moe_latency", "moe_kernels"  # our tasks, and the kinds of their requests
