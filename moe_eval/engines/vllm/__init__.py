"""The vLLM engine, written for 0.22 and versions like it.

Nothing here imports vllm before `load.load` is called. The settings of the installed version are found by inspecting
it. Labels are read from the built engine, not from the user's settings.
"""
