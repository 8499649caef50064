"""Settings of the environment, as vllm/envs.py has them."""

import os

VLLM_CACHE_ROOT = os.environ.get("VLLM_CACHE_ROOT", os.path.expanduser("~/.cache/vllm"))
