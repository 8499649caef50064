"""Everything that touches lm-evaluation-harness."""

MODEL = "trtllm_moe"  # what `--model` calls us
LATENCY = "moe_latency"  # our task, and the kind of its requests
