"""What tests of evaluators share."""

from __future__ import annotations

from moe_eval.checkpoint.geometry import Geometry, Params

# two layers, one with a router; every part a number that can be followed by hand
TOY = Geometry(
    layers=2,
    moe_layers=1,
    experts=4,
    top_k=2,
    hidden=8,
    heads=2,
    kv_heads=1,
    head_dim=3,
    value_dim=5,
    kv_values=8,
    vocabulary=100,
    tied=False,
    expert_params=10,
    params=Params(40, 30, 7, 800, 800),
)
