"""Layers with a state of fixed size in place of a cache."""

from __future__ import annotations

from moe_eval.checkpoint.contents import Json
from moe_eval.checkpoint.geometry.mixers import Mixer
from moe_eval.checkpoint.geometry.settings import size


def delta(config: Json, _kind: str, _layer: int) -> Mixer:
    """Gated delta rule (Yang et al., arXiv:2412.06464), as Qwen3-Next and Qwen3.5 have it.

    A head of values keeps a matrix of key_dim x value_dim. A token reads the old value of its key, writes the new one
    and reads its query's: 2 FLOPs for every number of the matrix each. A convolution keeps its last inputs.
    """
    hidden, kernel = size(config, "hidden_size"), size(config, "linear_conv_kernel_dim")
    value_heads = size(config, "linear_num_value_heads")
    key_dim, value_dim = size(config, "linear_key_head_dim"), size(config, "linear_value_head_dim")
    keys, values = size(config, "linear_num_key_heads") * key_dim, value_heads * value_dim
    channels = 2 * keys + values
    # queries, keys, values and the output's gate, then the rates of decay and of learning of every head
    projections = hidden * (channels + values + 2 * value_heads) + values * hidden
    matrix = value_heads * key_dim * value_dim
    return Mixer(
        1, projections + kernel * channels, state_values=matrix + (kernel - 1) * channels, state_flops=6 * matrix
    )


def mamba(config: Json, _kind: str, _layer: int) -> Mixer:
    """Mamba-2 (Dao and Gu, arXiv:2405.21060), as Nemotron-H has it.

    A head keeps a matrix of head_dim x state. A token writes to it and reads it: 2 FLOPs for every number of it each.
    A convolution keeps its last inputs.
    """
    hidden, kernel = size(config, "hidden_size"), size(config, "conv_kernel", "mamba_d_conv")
    heads, state = size(config, "mamba_num_heads"), size(config, "ssm_state_size")
    inner = heads * size(config, "mamba_head_dim")
    channels = inner + 2 * size(config, "n_groups", "mamba_n_groups") * state
    projections = hidden * (inner + channels + heads) + inner * hidden
    matrix = inner * state
    return Mixer(
        1, projections + kernel * channels, state_values=matrix + (kernel - 1) * channels, state_flops=4 * matrix
    )
