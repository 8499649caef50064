"""A model's sizes from its config.json: the input of floors of time and of counts of parameters."""

from moe_eval.checkpoint.geometry.config_sizes import read, routers
from moe_eval.checkpoint.geometry.mixers import Entries, Mixer
from moe_eval.checkpoint.geometry.sizes import STATE_WIDTHS, Geometry, Params

__all__ = ["STATE_WIDTHS", "Entries", "Geometry", "Mixer", "Params", "read", "routers"]
