"""The small model that moe_eval ships, for a command that names no model."""

from __future__ import annotations

from pathlib import Path

SHIPPED = Path(__file__).resolve().parents[1] / "assets" / "tiny-qwen3-moe"
SHIPPED_NOTE = "No model was named: this is moe_eval's tiny Qwen3-MoE on Transformers, which is not a model to judge."
