"""The TensorRT-LLM engine, for its PyTorch backend from version 1.1 on.

Nothing here imports tensorrt_llm before `load.load` is called. What differs between its versions is found by looking at
the installed one, and how it aligns log-probabilities by a self-test each time it starts.
"""
