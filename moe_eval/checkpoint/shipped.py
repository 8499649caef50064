"""The small model that moe_eval ships: it stands in where no model is named."""

from __future__ import annotations

from pathlib import Path

SHIPPED = Path(__file__).resolve().parents[1] / "assets" / "tiny-qwen3-moe"
SHIPPED_NOTE = "no model was named: this is moe_eval's own tiny Qwen3-MoE on Transformers, not a model to judge"
