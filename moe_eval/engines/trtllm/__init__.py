"""The TensorRT-LLM engine, for its PyTorch backend from version 1.1 on.

Nothing here imports tensorrt_llm before `load.load` is called. Differences between versions are found by inspecting the
installed version. A self-test at every start finds how it aligns log-probabilities.
"""
