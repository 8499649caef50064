"""The options of the commands that load arms: run, perf and ppl. They share these blocks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from moe_eval.cli.options.option import Declared, option
from moe_eval.data.scoring_windows import DATASETS
from moe_eval.records.run import EVALUATORS, EvaluatorName

_ARMS, _EVALUATORS, _TEXT, _QUALITY = "arms", "evaluators", "text", "quality"
_LATENCY, _COMMAND = "latency and kernels", "the command itself"
_LEAST_WARM_UPS = 5
_LONGEST_SECONDS = 1_000_000
_SYNONYMS = {"perplexity": "quality", "ppl": "quality", "perf": "latency", "speed": "latency", "trace": "kernels"}


@dataclass(frozen=True, kw_only=True)
class ArmOptions:
    """Which arms are loaded. Paths are folders or names on the hub."""

    model_path: str | None = option(
        None, Declared("the checkpoint in BF16. Without it the shipped model runs on Transformers", _ARMS)
    )
    fp8_model_path: str | None = option(None, Declared("a checkpoint in FP8, per tensor or in blocks", _ARMS))
    nvfp4_model_path: str | None = option(None, Declared("a checkpoint in NVFP4", _ARMS))
    precisions: tuple[str, ...] = option(
        ("bf16", "fp8", "nvfp4"),
        Declared("what to run, in this order. The first is the reference", _ARMS, metavar="NAME,..."),
    )
    engine: str | None = option(
        None, Declared("trtllm, vllm or transformers. Without it trtllm, or transformers for the shipped model", _ARMS)
    )
    moe_backend: str = option("auto", Declared("the engine's implementation of the experts", _ARMS))
    disable_fusion: bool = option(False, Declared("TensorRT-LLM: use no fused all-reduce", _ARMS))
    model_args: str = option(
        "",
        Declared(
            "more model arguments for every arm, as lm_eval takes them: tokenizer=, dtype= and the engine's own",
            _ARMS,
            metavar="KEY=VALUE,...",
        ),
    )


@dataclass(frozen=True, kw_only=True)
class EmulationOptions:
    """Whether low precisions are computed from the checkpoint in BF16."""

    emulate: bool = option(
        False, Declared("compute FP8 and NVFP4 from --model_path by rounding, for quality alone", _ARMS)
    )
    scope: Literal["experts", "all"] = option("experts", Declared("what --emulate rounds", _ARMS))


@dataclass(frozen=True, kw_only=True)
class EvaluatorOptions:
    """Which evaluators run."""

    evaluators: tuple[EvaluatorName, ...] = option(
        EVALUATORS, Declared("what to measure", _EVALUATORS, metavar="NAME,...", synonyms=_SYNONYMS)
    )


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """What the arms read."""

    dataset: str = option(
        "wikitext",
        Declared(f"the text: {', '.join(DATASETS)}. For prompts alone also random, which makes token ids up", _TEXT),
    )
    input_len: int = option(512, Declared("tokens of every window and of every prompt", _TEXT))


@dataclass(frozen=True, kw_only=True)
class QualityOptions(TextOptions):
    """What is scored."""

    num_chunks: int = option(100, Declared("windows to score, 0 for all", _QUALITY))


@dataclass(frozen=True, kw_only=True)
class LatencyOptions(TextOptions):
    """What is timed and traced."""

    batch_size: tuple[int, ...] = option(
        (1,), Declared("one batch size or several, such as 1,8,32", _LATENCY, metavar="N,...")
    )
    output_len: int = option(256, Declared("tokens that every sequence makes", _LATENCY))
    num_iterations: int = option(
        20, Declared("timed iterations of each arm and shape, at least", _LATENCY, bounds=(1, None))
    )
    warmup_iterations: int = option(
        _LEAST_WARM_UPS,
        Declared(
            "iterations before the first timed one, at least. More run until they settle",
            _LATENCY,
            bounds=(_LEAST_WARM_UPS, None),
        ),
    )
    blocks: int = option(1, Declared("loads of every arm, where arms do not fit together", _LATENCY, bounds=(1, None)))
    aa: bool = option(False, Declared("measure the first arm a second time as well, as a check", _LATENCY))
    seed: int = option(0, Declared("of --dataset random", _LATENCY))


@dataclass(frozen=True, kw_only=True)
class CommandOptions:
    """Where records go, and how the command works."""

    output_dir: Path = option(Path("benchmark_results"), Declared("the folder of the records", _COMMAND))
    config: Path | None = option(
        None, Declared("a YAML file of these options. The command line wins", _COMMAND, metavar="FILE")
    )
    gate: str | None = option(
        None,
        Declared('such as "speed>=1.2,ln_ppl<=0.01". The exit code is 0, 1 or 2', _COMMAND, metavar="CONDITIONS"),
    )
    timeout: float = option(
        3600.0,
        Declared("seconds that an arm may take for one task", _COMMAND, bounds=(1, _LONGEST_SECONDS), unit="seconds"),
    )
    dry_run: bool = option(False, Declared("show the plan and stop", _COMMAND))
    resume: bool = option(False, Declared("go on with what --output_dir holds", _COMMAND))


@dataclass(frozen=True, kw_only=True)
class PplOptions(CommandOptions, QualityOptions, EmulationOptions, ArmOptions):
    """What `moe-eval ppl` can be asked."""


@dataclass(frozen=True, kw_only=True)
class PerfOptions(CommandOptions, LatencyOptions, ArmOptions):
    """What `moe-eval perf` can be asked."""

    blocks: int = option(4, Declared("loads of every arm, where arms do not fit together", _LATENCY, bounds=(1, None)))
    mode: Literal["perf", "nsys"] = option(
        "perf", Declared("nsys: record one iteration of each shape instead", _LATENCY)
    )
    layerwise_nvtx: bool = option(False, Declared("with --mode nsys: put an NVTX range around every layer", _LATENCY))


@dataclass(frozen=True, kw_only=True)
class RunOptions(CommandOptions, LatencyOptions, QualityOptions, EvaluatorOptions, EmulationOptions, ArmOptions):
    """What `moe-eval run` can be asked."""

    output_dir: Path = option(Path("moe_eval_run"), Declared("the folder of the records", _COMMAND))


MeasuringOptions = RunOptions | PerfOptions | PplOptions
