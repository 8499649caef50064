"""Tiny random checkpoints of several families, and a plain oracle for what they say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import moe_eval
from moe_eval.data.window import Window
from moe_eval.engines import registry
from moe_eval.engines.base import EngineSettings
from moe_eval.engines.transformers.engine import TransformersEngine

VOCABULARY = 101
MAX_LENGTH = 64

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_LENGTH,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GPT2: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": MAX_LENGTH,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES: dict[str, Callable[[], Any]] = {
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **_SIZES, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, head_dim=8
    ),
    "mixtral": lambda: transformers.MixtralConfig(**_SIZES, num_local_experts=4, num_experts_per_tok=2),
    "gpt2": lambda: transformers.GPT2Config(**_GPT2),
    "llama": lambda: transformers.LlamaConfig(**_SIZES),
    # A cap near the size of the logits, and a sliding window shorter than the test's windows.
    "gemma2": lambda: transformers.Gemma2Config(**_SIZES, head_dim=8, final_logit_softcapping=3.0, sliding_window=16),
    "granitemoe": lambda: transformers.GraniteMoeConfig(
        **_SIZES, num_local_experts=4, num_experts_per_tok=2, logits_scaling=3.0
    ),
    "cohere": lambda: transformers.CohereConfig(**_SIZES, logit_scale=0.5),
}


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a float32 checkpoint of this family; nobody may write into it."""

    @cache
    def made(family: str) -> Path:
        folder = tmp_path_factory.mktemp(family)
        with torch.random.fork_rng():
            torch.manual_seed(7)
            transformers.AutoModelForCausalLM.from_config(FAMILIES[family]()).float().save_pretrained(folder)
        return folder

    return made


@pytest.fixture(scope="session", params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest, checkpoint_of: Callable[[str], Path]) -> Path:
    return checkpoint_of(request.param)


@pytest.fixture(scope="session")
def llama(checkpoint_of: Callable[[str], Path]) -> Path:
    return checkpoint_of("llama")


@pytest.fixture(scope="session")
def mixtral(checkpoint_of: Callable[[str], Path]) -> Path:
    return checkpoint_of("mixtral")


@pytest.fixture(scope="session")
def shipped() -> Path:
    return Path(moe_eval.__file__).parent / "assets" / "tiny-qwen3-moe"


@pytest.fixture(scope="session")
def tokenizer(shipped: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(shipped)


@pytest.fixture(scope="session")
def start(tokenizer: Any) -> Callable[..., TransformersEngine]:
    """Load a checkpoint as the harness does."""

    def started(folder: Path | str, **settings: Any) -> TransformersEngine:
        engine = registry.load("transformers", EngineSettings(checkpoint=str(folder), **settings), tokenizer)
        assert isinstance(engine, TransformersEngine)
        return engine

    return started


@pytest.fixture(scope="session")
def plain_model() -> Callable[[Path], Any]:
    """A checkpoint in float32 as Transformers itself loads it."""

    @cache
    def loaded(folder: Path) -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    return loaded


@pytest.fixture(scope="session")
def oracle(plain_model: Callable[[Path], Any]) -> Callable[[Path, Window], Tensor]:
    """Log-probabilities (n, vocabulary) in float64 at a window's n scored positions: one pass, no batch, no padding."""

    @torch.no_grad()
    def distribution(folder: Path, window: Window) -> Tensor:
        logits = plain_model(folder)(input_ids=torch.tensor([window.inputs])).logits[0]
        return torch.log_softmax(logits[-len(window.continuation) :].double(), dim=-1)

    return distribution


@pytest.fixture(scope="session")
def mixed_windows() -> Sequence[Window]:
    """Windows of many lengths in no order: the shortest there is, the longest there is, and some of equal length."""
    generator = torch.Generator().manual_seed(3)
    sizes = [
        (1, 1),
        (5, 2),
        (1, 20),
        (30, 3),
        (2, 2),
        (MAX_LENGTH, 1),
        (3, 1),
        (1, MAX_LENGTH),
        (9, 9),
        (5, 2),
        (20, 7),
    ]
    drawn = [torch.randint(0, VOCABULARY, (sum(pair),), generator=generator).tolist() for pair in sizes]
    return [
        Window(tuple(tokens[:context]), tuple(tokens[context:]))
        for (context, _), tokens in zip(sizes, drawn, strict=True)
    ]
