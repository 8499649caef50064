"""Train the shipped model on the token files of prepare.py.

    python training/train.py --data DIR --out DIR [--steps 4000]

The model that trains is the model that ships: its parameters are bfloat16 throughout, and the optimiser keeps a
float32 master copy. The checkpoint with the lowest loss on the validation tokens is the one that is kept.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func


@dataclass(frozen=True)
class Recipe:
    """What makes the run repeatable but for the order of floating-point sums on another GPU."""

    steps: int = 4000
    batch: int = 64  # windows a step
    window: int = 1024  # tokens a window
    learning_rate: float = 3e-3
    warmup: int = 200
    final_fraction: float = 0.02  # of the learning rate, reached by a cosine
    weight_decay: float = 0.1
    beta2: float = 0.95
    clip: float = 1.0
    balance: float = 0.01  # weight of the load-balancing loss, mean over layers
    seed: int = 20261122
    every: int = 250  # steps between two looks at the validation tokens


def build(vocabulary: int, end: int, recipe: Recipe) -> Qwen3MoeForCausalLM:
    config = Qwen3MoeConfig(
        vocab_size=vocabulary,
        hidden_size=192,
        num_hidden_layers=5,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=96,
        moe_intermediate_size=96,
        num_experts=16,
        num_experts_per_tok=4,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        max_position_embeddings=recipe.window,
        tie_word_embeddings=True,
        rope_theta=10000.0,
        eos_token_id=end,
        bos_token_id=None,
        pad_token_id=end,
    )
    config._experts_implementation = "grouped_mm" if torch.cuda.is_available() else "eager"
    return Qwen3MoeForCausalLM(config)


def loss_parts(model: Qwen3MoeForCausalLM, windows: Tensor, balance: bool) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Mean next-token loss, mean balancing loss over the layers, and the router logits of every layer."""
    out = model.model(input_ids=windows[:, :-1], use_cache=False, output_router_logits=True)
    logits = model.lm_head(out.last_hidden_state).float()
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
    routers = out.router_logits
    extra = torch.zeros((), device=loss.device)
    if balance:
        experts, top_k = model.config.num_experts, model.config.num_experts_per_tok
        extra = torch.stack([load_balancing_loss_func((layer,), experts, top_k) for layer in routers]).mean()
    return loss, extra, routers


@torch.no_grad()
def validate(model: Qwen3MoeForCausalLM, tokens: Tensor, recipe: Recipe) -> tuple[float, list[list[float]]]:
    """Loss in nats a token over consecutive windows, and the share of the routed slots of every expert by layer."""
    model.eval()
    count = (len(tokens) - 1) // recipe.window
    windows = tokens[: count * recipe.window + 1].unfold(0, recipe.window + 1, recipe.window)
    total, load = 0.0, torch.zeros(model.config.num_hidden_layers, model.config.num_experts)
    for batch in windows.split(32):
        loss, _, routers = loss_parts(model, batch, balance=False)
        total += loss.item() * len(batch)
        for layer, logits in enumerate(routers):
            chosen = logits.topk(model.config.num_experts_per_tok, dim=-1).indices.flatten()
            load[layer] += torch.bincount(chosen, minlength=model.config.num_experts).cpu()
    model.train()
    return total / count, (load / load.sum(1, keepdim=True)).tolist()


def save(model: Qwen3MoeForCausalLM, folder: Path) -> None:
    """Save with the settings spelled as Qwen's own checkpoints spell them, which Transformers 4 and engines read."""
    model.save_pretrained(folder)
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["num_experts"] = config.pop("num_local_experts", model.config.num_experts)
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    config["torch_dtype"] = config.pop("dtype")
    del config["transformers_version"]
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine down to the final fraction."""
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    floor = recipe.final_fraction
    return recipe.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--batch", type=int, default=Recipe.batch)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    train_model(Recipe(steps=args.steps, batch=args.batch), args.data, args.out)


def master_optimizer(masters: list[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW over the master copy. Vectors, which are norms, do not decay."""
    return torch.optim.AdamW(
        [
            {"params": [master for master in masters if master.dim() > 1], "weight_decay": recipe.weight_decay},
            {"params": [master for master in masters if master.dim() <= 1], "weight_decay": 0.0},
        ],
        betas=(0.9, recipe.beta2),
    )


def update(
    parameters: list[nn.Parameter], masters: list[nn.Parameter], optimizer: torch.optim.Optimizer, clip: float
) -> None:
    """One step of the optimiser on the masters, and a copy of them back into the model."""
    for master, parameter in zip(masters, parameters, strict=True):
        master.grad, parameter.grad = parameter.grad.float(), None
    nn.utils.clip_grad_norm_(masters, clip)
    optimizer.step()
    with torch.no_grad():
        torch._foreach_copy_(parameters, masters)


def train_model(recipe: Recipe, data: Path, out: Path) -> None:
    torch.manual_seed(recipe.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(data / "tokenizer")
    model = build(len(tokenizer), tokenizer.eos_token_id, recipe).to(device=device, dtype=torch.bfloat16)
    train, valid = (
        torch.from_numpy(np.load(data / f"{name}.npy").astype(np.int64)).to(device) for name in ("train", "valid")
    )
    parameters = list(model.parameters())
    masters = [nn.Parameter(parameter.detach().float()) for parameter in parameters]
    optimizer = master_optimizer(masters, recipe)

    generator = torch.Generator().manual_seed(recipe.seed)
    span = torch.arange(recipe.window + 1, device=device)
    log, best, started = [], math.inf, time.perf_counter()
    for step in range(recipe.steps):
        starts = torch.randint(len(train) - recipe.window - 1, (recipe.batch,), generator=generator).to(device)
        loss, extra, _ = loss_parts(model, train[starts[:, None] + span], balance=True)
        (loss + recipe.balance * extra).backward()
        for group in optimizer.param_groups:
            group["lr"] = rate(step, recipe)
        update(parameters, masters, optimizer, recipe.clip)

        if (step + 1) % recipe.every == 0 or step + 1 == recipe.steps:
            valid_loss, load = validate(model, valid, recipe)
            row = {"step": step + 1, "train": round(loss.item(), 4), "valid": round(valid_loss, 4)}
            log.append(row)
            print(row, f"{time.perf_counter() - started:.0f} s", flush=True)
            if valid_loss < best:
                best = valid_loss
                save(model, out)
                report = {"recipe": asdict(recipe), "curve": log, "kept": step + 1, "load": load}
                (out / "training.json").write_text(json.dumps(report) + "\n")
    report |= {
        "curve": log,
        "parameters": sum(parameter.numel() for parameter in parameters),
        "seconds": round(time.perf_counter() - started),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "data": json.loads((data / "data.json").read_text()),
    }
    (out / "training.json").write_text(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
