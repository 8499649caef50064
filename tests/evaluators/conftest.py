"""What tests of evaluators share."""

from __future__ import annotations

from moe_eval.checkpoint.geometry import Entries, Geometry, Mixer, Params

# two layers, one with a router; every part a number that can be followed by hand
TOY = Geometry(
    layers=2,
    moe_layers=1,
    sums=4,
    experts=4,
    top_k=2,
    hidden=8,
    vocabulary=100,
    tied=False,
    expert_params=10,
    params=Params(40, 30, 7, 800, 800),
    mixers=(Mixer(layers=2, params=15, entries=(Entries(values=8, flops=32),)),),
)
