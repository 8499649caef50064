"""A Qwen3-MoE with vLLM's module names, computing through Transformers' model in float32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from .layers import Attention, FusedMoE, Linear, Plain, dequantised


class Layer(nn.Module):
    def __init__(self, config: Any, hf: dict[str, Any], prefix: str) -> None:
        super().__init__()
        hidden, head = hf["hidden_size"], hf["head_dim"]
        heads, kept = hf["num_attention_heads"], hf["num_key_value_heads"]
        self.self_attn = nn.Module()
        names = (("qkv_proj", (heads + 2 * kept) * head, hidden), ("o_proj", hidden, heads * head))
        for name, rows, columns in names:
            self.self_attn.add_module(name, Linear(rows, columns, config, f"{prefix}.self_attn.{name}"))
        self.self_attn.attn = Attention(config)
        self.self_attn.q_norm, self.self_attn.k_norm = Plain(head, config=config), Plain(head, config=config)
        self.mlp = nn.Module()
        self.mlp.gate = Linear(hf["num_experts"], hidden, config, f"{prefix}.mlp.gate")
        self.mlp.experts = FusedMoE(config, hf)
        self.input_layernorm = Plain(hidden, config=config)
        self.post_attention_layernorm = Plain(hidden, config=config)


class Qwen3MoeForCausalLM(nn.Module):
    """`compute` is not a submodule: its weights are not vLLM's."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        hf = config.model_config.hf_config
        self.model = nn.Module()
        self.model.embed_tokens = Plain(hf["vocab_size"], hf["hidden_size"], config=config)
        layers = [Layer(config, hf, f"model.layers.{at}") for at in range(hf["num_hidden_layers"])]
        self.model.layers = nn.ModuleList(layers)
        self.model.norm = Plain(hf["hidden_size"], config=config)
        self.lm_head = Plain(hf["vocab_size"], hf["hidden_size"], config=config)
        if hf["tie_word_embeddings"]:
            self.lm_head.weight = self.model.embed_tokens.weight
        self._folder = config.model_config.model
        self._compute: list[Any] = []

    def checkpoint(self) -> dict[str, Tensor]:
        """A checkpoint's weights by vLLM's names."""
        self._compute = [transformers.AutoModelForCausalLM.from_pretrained(self._folder, dtype=torch.float32).eval()]
        return dict(_by_vllm_name(self._compute[0]))

    @torch.no_grad()
    def ready(self) -> None:
        """Give Transformers' model the weights that this one has."""
        if not self._compute:
            config = transformers.AutoConfig.from_pretrained(self._folder)
            self._compute = [transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()]
        mine = dict(self.named_parameters(remove_duplicate=False))
        for name, theirs in _by_vllm_name(self._compute[0], views=True):
            value = dequantised(mine[name], mine.get(f"{name}_scale"))
            if isinstance(theirs, list):
                if name.endswith("_weight"):  # of experts, which Transformers 4 keeps one by one
                    value = value.reshape(len(theirs), *theirs[0].shape)
                else:
                    value = value.split([len(each) for each in theirs])
                for each, part in zip(theirs, value, strict=True):
                    each.copy_(part)
            else:
                theirs.copy_(value)

    @torch.no_grad()
    def run(self, tokens: list[int]) -> tuple[Tensor, Tensor]:
        """Logits (tokens, vocabulary) and the chosen experts (tokens, layers, top k)."""
        chosen: list[Tensor] = []
        model = self._compute[0]

        def keep(gate: Any, inputs: Any, _output: Any) -> None:
            hidden = inputs[0].reshape(-1, inputs[0].shape[-1])
            chosen.append((hidden @ gate.weight.T).topk(model.config.num_experts_per_tok, dim=-1).indices)

        hooks = [layer.mlp.gate.register_forward_hook(keep) for layer in model.model.layers]
        try:
            logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
        finally:
            for hook in hooks:
                hook.remove()
        return logits, torch.stack(chosen, dim=1)


def _by_vllm_name(model: Any, views: bool = False) -> Iterator[tuple[str, Any]]:
    """Transformers' tensors by vLLM's names; with `views` the parts of fused ones in a list."""

    def fused(parts: list[Tensor]) -> Any:
        return parts if views else torch.cat(parts)

    yield "model.embed_tokens.weight", model.model.embed_tokens.weight.data
    yield "lm_head.weight", model.lm_head.weight.data
    yield "model.norm.weight", model.model.norm.weight.data
    for at, layer in enumerate(model.model.layers):
        prefix, attention, mlp = f"model.layers.{at}", layer.self_attn, layer.mlp
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        yield f"{prefix}.self_attn.qkv_proj.weight", fused([each.weight.data for each in projections])
        for name in ("o_proj", "q_norm", "k_norm"):
            yield f"{prefix}.self_attn.{name}.weight", getattr(attention, name).weight.data
        yield f"{prefix}.mlp.gate.weight", mlp.gate.weight.data
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{prefix}.{name}.weight", getattr(layer, name).weight.data
        if hasattr(mlp.experts, "gate_up_proj"):  # Transformers from 5 on
            yield f"{prefix}.mlp.experts.w13_weight", mlp.experts.gate_up_proj.data
            yield f"{prefix}.mlp.experts.w2_weight", mlp.experts.down_proj.data
        else:
            up = [part.weight.data for each in mlp.experts for part in (each.gate_proj, each.up_proj)]
            down = [each.down_proj.weight.data for each in mlp.experts]
            shape = (len(down), -1, up[0].shape[1])
            yield f"{prefix}.mlp.experts.w13_weight", up if views else torch.stack(up).reshape(shape)
            yield f"{prefix}.mlp.experts.w2_weight", down if views else torch.stack(down)


def build(config: Any) -> Qwen3MoeForCausalLM:
    return Qwen3MoeForCausalLM(config)
