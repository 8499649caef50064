"""What TensorRT-LLM and vLLM share. Each engine's `traits` module holds its own names and words."""
