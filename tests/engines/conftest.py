"""Tiny random checkpoints of several families, and a plain oracle for what they say."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from moe_eval.data.window import Window
from moe_eval.engines import registry
from moe_eval.engines.base import EngineSettings, WindowScores
from moe_eval.engines.transformers.engine import TransformersEngine
from moe_eval.machine import hardware
from tests.conftest import SHIPPED

LONGEST = 1022  # of the shipped model's 1,024 positions, with served engines
VOCABULARY = 101
MAX_LENGTH = 64

Distribution = Callable[[Window], Tensor]
TEXTS = ("The history of", "He was born in the town of", "In", "== Early life ==\n The", "The history of")
NEW = 12

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
_MOE: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
# a family's configuration, with other sizes if they are given
FAMILIES: dict[str, Callable[..., Any]] = {
    "qwen3_moe": lambda **more: transformers.Qwen3MoeConfig(
        **_SIZES | more, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, head_dim=8
    ),
    "mixtral": lambda **more: transformers.MixtralConfig(**_SIZES | _MOE | more),
    "gpt2": lambda: transformers.GPT2Config(**_SIZES),
    "llama": lambda **more: transformers.LlamaConfig(**_SIZES | more),
    # A cap near the size of the logits, and a sliding window shorter than the test's windows.
    "gemma2": lambda: transformers.Gemma2Config(**_SIZES, head_dim=8, final_logit_softcapping=3.0, sliding_window=16),
    "granitemoe": lambda: transformers.GraniteMoeConfig(**_SIZES, **_MOE, logits_scaling=3.0),
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
    return SHIPPED


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(SHIPPED)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the machine have these GPUs."""

    def have(*found: hardware.Gpu) -> None:
        monkeypatch.setattr(hardware, "gpus", lambda: found)

    return have


def add_scales(file: Path) -> None:
    """Give every expert a scale beside its weights."""
    weights = load_file(file)
    scales = {name.replace(".weight", ".weight_scale"): torch.ones(1) for name in weights if ".experts." in name}
    save_file(weights | scales, file, metadata={"format": "pt"})


@pytest.fixture
def spoil(tmp_path: Path) -> Callable[..., Path]:
    """A copy of the shipped checkpoint, fields of config.json replaced and further JSON files beside it.

    Of a quantised one, experts get scales, so that their types tell nothing.
    """

    def copied(*, files: dict[str, Any] | None = None, **fields: Any) -> Path:
        folder = Path(shutil.copytree(SHIPPED, tmp_path / "checkpoint"))
        for name, content in {"config.json": fields, **(files or {})}.items():
            file = folder / name
            old = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
            file.write_text(json.dumps(old | content), encoding="utf-8")
        if "quantization_config" in fields or "hf_quant_config.json" in (files or {}):
            add_scales(folder / "model.safetensors")
        return folder

    return copied


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


def window(seed: int, context: int, continuation: int) -> Window:
    """Random tokens of the shipped vocabulary."""
    drawn = torch.randint(0, 4096, (context + continuation,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Window(tuple(drawn[:context]), tuple(drawn[context:]))


def check(oracle: Distribution, windows: Sequence[Window], found: Sequence[WindowScores]) -> None:
    assert len(found) == len(windows)
    for window, scores in zip(windows, found, strict=True):
        expected = oracle(window)
        targets = torch.tensor(window.continuation)
        assert scores.logprobs.dtype == np.float32
        logprobs = expected.gather(1, targets[:, None])[:, 0].numpy()
        np.testing.assert_allclose(scores.logprobs, logprobs, rtol=1e-4, atol=1e-4)
        assert scores.greedy.tolist() == (expected.argmax(1) == targets).tolist()


@pytest.fixture(scope="session")
def prompts(tokenizer: Any) -> list[list[int]]:
    return [tokenizer.encode(text) for text in TEXTS]


@pytest.fixture(scope="session")
def greedy(plain_model: Callable[[Path], Any], prompts: list[list[int]]) -> list[list[int]]:
    """What the shipped model says after each prompt alone; none of these rows holds an end-of-text token."""
    model = plain_model(SHIPPED)
    rows = []
    for prompt in prompts:
        out = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=NEW)
        rows.append(out[0, len(prompt) :].tolist())
    assert all(len(row) == NEW and model.generation_config.eos_token_id not in row for row in rows)
    return rows


@contextmanager
def on_path(folder: Path, forget: Callable[[], None], variables: Sequence[str]) -> Iterator[None]:
    """A double's folder on the path for as long as loading takes; an engine goes on without it."""
    path, environment = list(sys.path), {name: os.environ.pop(name) for name in variables if name in os.environ}
    forget()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        try:
            yield
        finally:
            forget()
            sys.path[:] = path
            for name in variables:
                os.environ.pop(name, None)
            os.environ.update(environment)
