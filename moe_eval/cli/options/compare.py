"""What `moe-eval compare` can be asked. Commands that load arms share the rules of its verdicts."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from moe_eval.cli.options.option import option
from moe_eval.cli.options.output import GATE, INPUT, OUTPUT, VERDICT, OutputOptions
from moe_eval.frozen import frozen
from moe_eval.records.verdicts import Rules


@frozen(kw_only=True)
class VerdictOptions:
    """By which rules verdicts are made."""

    min_gain: float = option(
        0.01, "the least gain that counts, 0.01 for 1 %", VERDICT, minimum=0, maximum=0.5, meaning="0.01 is 1 %"
    )
    decide_on: Literal["e2e", "ttft", "tpot", "output_tok_s", "output_tok_s_per_gpu"] | None = option(
        None, "what decides. Without it e2e, and output_tok_s_per_gpu between other numbers of GPUs", VERDICT
    )
    price_per_gpu_hour: float | None = option(
        None, "tell what a million output tokens cost at this price", VERDICT, minimum=0, metavar="PRICE"
    )


@frozen(kw_only=True)
class DropOptions:
    """By which rule tasks have a verdict."""

    max_drop: float = option(
        0.01, "the loss in a task of lm-eval that is allowed, in its metric", VERDICT, minimum=0, maximum=1
    )


@frozen(kw_only=True)
class CompareOptions(OutputOptions, DropOptions, VerdictOptions):
    """What `moe-eval compare` can be asked."""

    sources: tuple[str, ...] = option(
        (".",),
        "a folder of records, of lm_eval's results or of both, an exported .zip, an MLflow run id or an experiment",
        INPUT,
        metavar="SOURCE",
        is_path=True,
        is_positional=True,
        word_count="*",
    )
    across: tuple[Literal["engines", "versions", "gpus", "gpu_count", "checkpoint"], ...] = option(
        (), "what may differ between arms of several runs", INPUT, metavar="NAME,..."
    )
    gate: str | None = option(None, GATE, OUTPUT, metavar="CONDITIONS")
    output_dir: Path = option(Path("."), "the folder of the comparison and the report", OUTPUT)


def rules_of(options: object) -> Rules:
    """By which rules verdicts are made. The default ones for a command that has none."""
    if not isinstance(options, VerdictOptions):
        return Rules()
    is_per_gpu = options.decide_on in (None, "output_tok_s_per_gpu")
    max_drop = options.max_drop if isinstance(options, DropOptions) else Rules.max_drop
    return Rules(options.min_gain, options.decide_on or "e2e", is_per_gpu, options.price_per_gpu_hour, max_drop)
