"""What one file of another tool states, the same for all tools."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from moe_eval.frozen import frozen
from moe_eval.records.tool import ToolLabels

# numbers of a file, which msgspec checks where a form says so
Count = Annotated[int, Meta(ge=1)]
Positive = Annotated[float, Meta(gt=0)]


@frozen
class ToolResult:
    """One run of a tool. None means that its file does not state it.

    Attributes:
        precision: of the experts. `quant_algo`: as the file spells it.
        batch_size: sequences at once: of a batch, or the concurrency of a client.
        input_len, output_len: tokens of a sequence, the mean over requests where they differ.
        tokens: read and made, of all sequences together.
        e2e_s, ttft_s, tpot_s: seconds, one value for every iteration, or the median over requests alone.
        output_tok_s: of all sequences together. None where it follows from e2e and the shape.
        notes: what a reader of the figures has to know.
    """

    labels: ToolLabels
    engine: str | None = None
    gpu_name: str | None = None
    precision: str | None = None
    quant_algo: str | None = None
    batch_size: int | None = None
    input_len: float | None = None
    output_len: float | None = None
    tokens: int | None = None
    e2e_s: tuple[float, ...] = ()
    ttft_s: tuple[float, ...] = ()
    tpot_s: tuple[float, ...] = ()
    output_tok_s: float | None = None
    notes: tuple[str, ...] = ()


def in_seconds(*milliseconds: float | None) -> tuple[float, ...]:
    """Those that are there, in seconds."""
    return tuple(value / 1000 for value in milliseconds if value is not None)
