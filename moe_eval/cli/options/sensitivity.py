"""What `moe-eval sensitivity` can be asked."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from moe_eval.cli.options.arms import ARMS
from moe_eval.cli.options.option import COMMAND, option
from moe_eval.cli.options.output import RECORDS, OutputOptions
from moe_eval.cli.options.quality import QUALITY, QualityOptions
from moe_eval.frozen import frozen


@frozen(kw_only=True)
class SensitivityOptions(OutputOptions, QualityOptions):
    """What `moe-eval sensitivity` can be asked."""

    model_path: str | None = option(
        None, "the unquantised checkpoint. Without it the shipped model is measured", ARMS, is_path=True
    )
    precision: Literal["fp8", "fp8_block", "nvfp4"] = option(
        "nvfp4", "what the experts of one layer at a time are rounded to", ARMS
    )
    model_args: str = option(
        "",
        "more model arguments, as lm_eval takes them: tokenizer=, dtype=, device=, calibration_windows= and others of "
        "the transformers engine",
        ARMS,
        metavar="KEY=VALUE,...",
    )
    experts: int = option(0, "quantise so many experts of every layer alone too, the busiest ones", QUALITY, minimum=0)
    max_kld: float = option(
        0.01,
        "the KLD that the suggested layers keep together",
        QUALITY,
        minimum=0,
        maximum=100,
        meaning="nats for a token",
    )
    output_dir: Path = option(Path("benchmark_results"), RECORDS, COMMAND)
    config: Path | None = option(None, "a YAML file of these options. The command line wins", COMMAND, metavar="FILE")
