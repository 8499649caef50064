"""A rank that knows weights=random. vLLM imports this in every worker, before it loads the model."""

from __future__ import annotations

from moe_eval.engines.vllm import random_weights
from moe_eval.engines.vllm.rank import Rank

random_weights.register()


class RandomRank(Rank):
    """A Rank whose process has the load format."""
