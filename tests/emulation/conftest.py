"""Tiny random mixture-of-experts models, and windows of the text that the package carries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from tests.conftest import SAMPLE, SHIPPED

VOCABULARY = 101
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 40,  # no multiple of a block's 16 or 128
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES: dict[str, Callable[[], Any]] = {
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **_SIZES, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, head_dim=8
    ),
    "mixtral": lambda: transformers.MixtralConfig(**_SIZES, num_local_experts=4, num_experts_per_tok=2),
    "llama": lambda: transformers.LlamaConfig(**_SIZES),
}


@pytest.fixture(scope="session")
def made() -> Callable[..., Any]:
    """A model of this family, every time with the same weights."""

    def fresh(family: str, backend: str = "grouped_mm", dtype: torch.dtype = torch.float32) -> Any:
        config = FAMILIES[family]()
        more = {} if family == "llama" else {"experts_implementation": backend}
        with torch.random.fork_rng():
            torch.manual_seed(7)
            return transformers.AutoModelForCausalLM.from_config(config, **more).to(dtype).eval()

    return fresh


@pytest.fixture(scope="session")
def tokens() -> Tensor:
    """Random rows of token ids: the first two calibrate, the others are new."""
    return torch.randint(0, VOCABULARY, (5, 40), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(SHIPPED)


@pytest.fixture(scope="session")
def sample(tokenizer: Any) -> Sequence[int]:
    """The tokens of the sample articles."""
    ids: list[int] = tokenizer.encode(SAMPLE.read_text(encoding="utf-8"), verbose=False)
    return ids
