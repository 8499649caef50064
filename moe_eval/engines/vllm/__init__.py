"""The vLLM engine, written for 0.22 and versions like it.

Nothing here imports vllm before `load.load` is called. Which settings the installed version has is found by looking at
it, and what was built is told from the engine itself, not from what was asked.
"""
