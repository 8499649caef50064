"""The routing that the Transformers engine tells, against the routers of the loaded model themselves."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from moe_eval.checkpoint import geometry
from moe_eval.engines.transformers.engine import TransformersEngine
from moe_eval.errors import UsageError
from moe_eval.evaluators import routing as router
from tests.conftest import ROOT
from tests.engines.conftest import _SIZES, VOCABULARY

Start = Callable[..., TransformersEngine]
SMALL: list[tuple[str, dict[str, Any]]] = json.loads((ROOT / "tests/checkpoint/small_configs.json").read_text())
# layers with a router of five, by the settings of each
LAYERS = {
    "deepseek_v3": 3,
    "deepseek_v32": 3,
    "deepseek_v4": 5,
    "glm4_moe": 3,
    "glm_moe_dsa": 3,
    "gpt_oss": 5,
    "qwen3_next": 5,
    "qwen3_5_moe_text": 5,
    "llama4_text": 2,
    "nemotron_h": 2,
    "minimax_m2": 5,
    "gemma4_text": 5,
}
# of a type with several settings the first
SHAPES = [(kind, dict(reversed(SMALL))[kind], layers) for kind, layers in LAYERS.items()]
END = 2  # the end-of-text token of the tiny checkpoints
NEW = 6


def prompts(vocabulary: int) -> list[list[int]]:
    """Of three lengths, in no order."""
    generator = torch.Generator().manual_seed(11)
    return [torch.randint(3, vocabulary, (size,), generator=generator).tolist() for size in (9, 1, 14)]


@torch.no_grad()
def continued(model: Any, prompt: Sequence[int], new: int, end: int) -> list[int]:
    """A prompt and its greedy continuation that never ends: the whole is read again for every token."""
    tokens = list(prompt)
    for _ in range(new):
        logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]
        logits[end] = -torch.inf
        tokens.append(int(logits.argmax()))
    return tokens


@torch.no_grad()
def routed(model: Any, tokens: Sequence[int], top_k: int) -> np.ndarray:
    """What the model's routers choose while it reads these tokens: sorted, shape (tokens, routers, top_k)."""
    chosen: list[torch.Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        parts = output if isinstance(output, tuple) else (output,)
        tables = [part for part in parts if isinstance(part, torch.Tensor) and part.ndim == 2]
        indices = [part for part in tables if part.dtype in (torch.int64, torch.int32)]
        # a router that tells its logits alone leaves the choice to the block around it
        chosen.append(indices[0] if indices else torch.softmax(tables[0].float(), dim=-1).topk(top_k, dim=-1).indices)

    routers = [module for name, module in model.named_modules() if name.endswith((".gate", ".router"))]
    hooks = [router.register_forward_hook(keep) for router in routers]
    try:
        model(input_ids=torch.tensor([tokens]), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return np.sort(torch.stack([each.reshape(len(tokens), top_k) for each in chosen], dim=1).numpy(), axis=-1)


def saved(folder: Path, config: Any) -> Path:
    """A float32 checkpoint whose matrices, routers among them, and corrections are drawn at random."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = transformers.AutoModelForCausalLM.from_config(config).float()
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if (tensor.ndim > 1 and tensor.is_floating_point()) or name.endswith("correction_bias"):
                torch.nn.init.normal_(tensor, std=0.3)
            if name.endswith("tid2eid"):  # the experts of every token id
                tensor.copy_(torch.rand(len(tensor), 6).argsort(dim=-1)[:, : tensor.shape[1]])
        model.save_pretrained(folder)
    return folder


def check(engine: TransformersEngine, vocabulary: int, end: int, shape: tuple[int, int], experts: int) -> None:
    asked = prompts(vocabulary)
    found = engine.routing(asked, NEW)
    for prompt, rows in zip(asked, found, strict=True):
        whole = continued(engine.model, prompt, NEW, end)
        assert rows.dtype == np.int16
        assert rows.shape == (len(prompt) + NEW - 1, *shape), "the last new token was never read"
        np.testing.assert_array_equal(np.sort(rows, axis=-1), routed(engine.model, whole[:-1], shape[1]))
    together = np.concatenate(found)
    assert (together.min(), together.max()) == (0, experts - 1), "too few experts to tell a wrong one from a right one"


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "granitemoe"])
def test_routing_is_what_the_routers_choose(checkpoint_of: Callable[[str], Path], start: Start, family: str) -> None:
    check(start(checkpoint_of(family)), VOCABULARY, END, (2, 2), 4)


def test_routing_of_the_shipped_model(shipped: Path, start: Start) -> None:
    check(start(shipped, dtype="float32"), 4096, 0, (5, 4), 16)


def test_layers_without_a_router_have_no_column(tmp_path: Path, start: Start) -> None:
    config = transformers.Qwen3MoeConfig(
        **{**_SIZES, "num_hidden_layers": 4},
        **{"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "head_dim": 8},
        mlp_only_layers=[0, 2],
    )
    check(start(saved(tmp_path, config), batch_size=2), VOCABULARY, END, (2, 3), 8)


def test_one_new_token_is_made_and_not_read(checkpoint_of: Callable[[str], Path], start: Start) -> None:
    engine = start(checkpoint_of("mixtral"))
    for prompt, rows in zip(prompts(VOCABULARY), engine.routing(prompts(VOCABULARY), 1), strict=True):
        np.testing.assert_array_equal(np.sort(rows, axis=-1), routed(engine.model, prompt, 2))


def test_a_model_without_experts_is_refused(llama: Path, start: Start) -> None:
    with pytest.raises(UsageError, match="LlamaForCausalLM") as refused:
        start(llama).routing([[1, 2]], 2)
    assert "\n" not in str(refused.value)


def test_a_choice_that_does_not_follow_from_the_logits(tmp_path: Path, start: Start) -> None:
    config = transformers.Ernie4_5_MoeConfig(
        **_SIZES, moe_num_experts=4, moe_k=2, moe_intermediate_size=24, moe_layer_start_index=0
    )
    engine = start(saved(tmp_path, config))
    names = [name for name, _ in (*engine.model.named_parameters(), *engine.model.named_buffers())]
    assert any(name.endswith("e_score_correction_bias") for name in names), "what is added before the choice"
    check(engine, VOCABULARY, END, (2, 2), 4)


@pytest.mark.parametrize(("kind", "settings", "layers"), SHAPES, ids=lambda value: str(value)[:12])
def test_routing_of_models_of_other_shapes(
    tmp_path: Path, start: Start, kind: str, settings: dict[str, Any], layers: int
) -> None:
    """Groups, corrections, hashes, shared experts, dense layers and states beside the routers."""
    sizes = {"vocab_size": VOCABULARY, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": END}
    sizes |= {name: VOCABULARY for name in settings if name == "vocab_size_per_layer_input"}
    config = transformers.AutoConfig.for_model(kind, **settings | sizes)
    engine = start(saved(tmp_path, config))
    read_sizes = geometry.read(json.loads((tmp_path / "config.json").read_text()))
    assert read_sizes is not None
    assert read_sizes.moe_layers == layers
    routings = engine.routing(prompts(VOCABULARY), 1)
    for prompt, rows in zip(prompts(VOCABULARY), routings, strict=True):
        np.testing.assert_array_equal(np.sort(rows, axis=-1), routed(engine.model, prompt, 2))
        assert rows.shape[1] == layers
        counted = router.read([rows], len(prompt), read_sizes.experts, [1])[1]
        assert [sum(load) for load in counted.load] == [len(prompt) * read_sizes.top_k] * layers
