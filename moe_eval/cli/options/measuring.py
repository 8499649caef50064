"""What commands that load arms can be asked: one frozen dataclass a command, of blocks that they share."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from moe_eval.cli.options.arms import ArmOptions, EmulationOptions
from moe_eval.cli.options.compare import VerdictOptions
from moe_eval.cli.options.evaluators import EvaluatorOptions
from moe_eval.cli.options.latency import LATENCY, LatencyOptions, ProfilerOptions
from moe_eval.cli.options.option import COMMAND, option
from moe_eval.cli.options.output import GATE, RECORDS, OutputOptions
from moe_eval.cli.options.quality import QualityOptions
from moe_eval.cli.options.serving import ServingOptions
from moe_eval.cli.options.tasks import TaskOptions
from moe_eval.frozen import frozen


@frozen(kw_only=True)
class CommandOptions(OutputOptions):
    """Where records go, and how the command works."""

    output_dir: Path = option(Path("benchmark_results"), RECORDS, COMMAND)
    config: Path | None = option(None, "a YAML file of these options. The command line wins", COMMAND, metavar="FILE")
    gate: str | None = option(None, GATE, COMMAND, metavar="CONDITIONS")
    timeout: float = option(3600.0, "seconds that an arm may take for one task", COMMAND, minimum=1, maximum=1_000_000)
    dry_run: bool = option(False, "show the plan and stop. No engine needs to be installed", COMMAND)
    gpu: str | None = option(
        None,
        "with --dry_run: plan for GPUs that are not here, such as H100 or 8xB200",
        COMMAND,
        metavar="NAME",
        needs=("dry_run", True),
    )
    resume: bool = option(False, "go on with what --output_dir holds", COMMAND)


@frozen(kw_only=True)
class PplOptions(CommandOptions, QualityOptions, EmulationOptions, ArmOptions):
    """What `moe-eval ppl` can be asked."""


@frozen(kw_only=True)
class PerfOptions(CommandOptions, VerdictOptions, LatencyOptions, ArmOptions):
    """What `moe-eval perf` can be asked."""

    mode: Literal["perf", "nsys"] = option("perf", "nsys: record one iteration of each shape instead", LATENCY)
    layerwise_nvtx: bool = option(
        False, "with --mode nsys: put an NVTX range around every layer", LATENCY, needs=("mode", "nsys")
    )


@frozen(kw_only=True)
class RunOptions(
    CommandOptions,
    VerdictOptions,
    ProfilerOptions,
    ServingOptions,
    LatencyOptions,
    TaskOptions,
    QualityOptions,
    EvaluatorOptions,
    EmulationOptions,
    ArmOptions,
):
    """What `moe-eval run` can be asked."""

    output_dir: Path = option(Path("moe_eval_run"), RECORDS, COMMAND)


MeasuringOptions = RunOptions | PerfOptions | PplOptions
