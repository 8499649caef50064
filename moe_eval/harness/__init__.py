"""Everything that touches lm-evaluation-harness."""

MODEL = "trtllm_moe"  # what `--model` calls us
