"""Tiny random mixture-of-experts models, and windows of the text that the package carries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from tests.conftest import SAMPLE, SHIPPED
from tests.engines.conftest import FAMILIES, VOCABULARY

SIZES = {"hidden_size": 40, "intermediate_size": 56}  # no multiples of a block's 16 or 128


@pytest.fixture(scope="session")
def made() -> Callable[..., Any]:
    """A model of this family, every time with the same weights."""

    def fresh(family: str, backend: str = "grouped_mm", dtype: torch.dtype = torch.float32) -> Any:
        config = FAMILIES[family](**SIZES)
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
