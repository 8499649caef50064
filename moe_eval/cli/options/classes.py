"""What a command that loads arms can be asked: one frozen dataclass a command, of blocks that they share."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from moe_eval.cli.options import arm_text
from moe_eval.cli.options.compare import DropOptions, VerdictOptions
from moe_eval.cli.options.option import COMMAND, option
from moe_eval.cli.options.output import GATE, RECORDS, OutputOptions
from moe_eval.data.scoring_windows import DATASETS
from moe_eval.frozen import frozen
from moe_eval.records.run import LEAST_WARM_UPS, EvaluatorName

_ARMS, _EVALUATORS, _TEXT, _QUALITY, _TASKS = "arms", "evaluators", "text", "quality", "tasks of lm-eval"
_LATENCY, _SERVING = "latency and kernels", "serving"
_LEAST_LOADS = 3  # of a verdict: that of `stats`, which takes scipy a second to import
_MOST_LOADS = 1000
_UNTIL = ("until", "decided")
_SCORED, _TIMED = ("evaluators", "quality"), ("evaluators", "latency")
_RUN, _TRACED = ("evaluators", "latency", "kernels"), ("evaluators", "kernels")
_MADE, _LOADED, _SERVED = (*_RUN, "serving"), (*_TIMED, "serving"), ("evaluators", "serving")
_SYNONYMS = {
    "perplexity": "quality",
    "ppl": "quality",
    "perf": "latency",
    "speed": "latency",
    "trace": "kernels",
    "serve": "serving",
}
# those of their rooms, which are imported where they are needed
_PRECISIONS = ("bf16", "fp16", "fp32", "fp8", "fp8_channel", "fp8_block", "nvfp4")
_ENGINES = ("trtllm", "vllm", "transformers")
_FP8, _NVFP4 = ("precisions", "fp8", "fp8_block", "fp8_channel"), ("precisions", "nvfp4")


@frozen(kw_only=True)
class ArmOptions:
    """Which arms are loaded. Paths are folders or names on the hub."""

    model_path: str | None = option(
        None, "the checkpoint in BF16. Without it the shipped model runs on Transformers", _ARMS, is_path=True
    )
    fp8_model_path: str | None = option(
        None, "a checkpoint in FP8, per tensor or in blocks", _ARMS, is_path=True, needs=_FP8
    )
    nvfp4_model_path: str | None = option(None, "a checkpoint in NVFP4", _ARMS, is_path=True, needs=_NVFP4)
    precisions: tuple[str, ...] = option(
        ("bf16", "fp8", "nvfp4"),
        "what to run, in this order. The first is the reference",
        _ARMS,
        metavar="NAME,...",
        suggestions=_PRECISIONS,
    )
    arms: tuple[str, ...] = option(
        (),
        "an arm by its settings, in place of --precisions. Give one --arm for each. The first is the reference",
        _ARMS,
        metavar="NAME:KEY=VALUE,...",
        spelling="arm",
        reader=arm_text.texts,
    )
    engine: str | None = option(
        None,
        "trtllm, vllm or transformers. Without it trtllm, or transformers for the shipped model",
        _ARMS,
        suggestions=_ENGINES,
    )
    moe_backend: str = option("auto", "the engine's implementation of the experts", _ARMS)
    disable_fusion: bool = option(False, "TensorRT-LLM: use no fused all-reduce", _ARMS)
    stall_timeout: float | None = option(
        None, "TensorRT-LLM and vLLM: seconds without a response, after which an arm ends", _ARMS, minimum=0.1
    )
    model_args: str = option(
        "",
        "more model arguments for every arm, as lm_eval takes them: tokenizer=, dtype= and the engine's own",
        _ARMS,
        metavar="KEY=VALUE,...",
    )


@frozen(kw_only=True)
class EmulationOptions:
    """Whether low precisions are computed from the checkpoint in BF16."""

    emulate: bool = option(False, "compute FP8 and NVFP4 from --model_path by rounding, for quality alone", _ARMS)
    scope: Literal["experts", "all"] = option("experts", "what --emulate rounds", _ARMS, needs=("emulate", True))


@frozen(kw_only=True)
class EvaluatorOptions:
    """Which evaluators run."""

    evaluators: tuple[EvaluatorName, ...] = option(
        ("quality", "latency", "kernels"),
        "what to measure, beside --tasks",
        _EVALUATORS,
        metavar="NAME,...",
        synonyms=_SYNONYMS,
    )


@frozen(kw_only=True)
class TextOptions:
    """What the arms read."""

    dataset: str = option(
        "wikitext",
        f"the text: {', '.join(DATASETS)}. For prompts alone also random, which makes token ids up",
        _TEXT,
        suggestions=(*DATASETS, "random"),
    )
    input_len: int = option(512, "tokens of every window and of every prompt", _TEXT)


@frozen(kw_only=True)
class QualityOptions(TextOptions):
    """What is scored."""

    num_chunks: int = option(
        100, "windows to score, spread over all documents, 0 for all", _QUALITY, minimum=0, needs=_SCORED
    )


@frozen(kw_only=True)
class LatencyOptions(TextOptions):
    """What is timed and traced."""

    batch_size: tuple[int, ...] = option(
        (1,), "one batch size or several, such as 1,8,32", _LATENCY, metavar="N,...", needs=_RUN
    )
    output_len: int = option(256, "tokens that every sequence makes", _LATENCY, needs=_MADE)
    num_iterations: int = option(
        20,
        "timed iterations of each arm and shape, at least, spread over --loads",
        _LATENCY,
        minimum=1,
        needs=_TIMED,
    )
    warmup_iterations: int = option(
        LEAST_WARM_UPS,
        "iterations before the first timed one, at least. More run until they settle. "
        f"Fewer than {LEAST_WARM_UPS} are all, for a quick look without a verdict",
        _LATENCY,
        minimum=1,
        needs=_TIMED,
    )
    loads: int = option(
        4,
        f"times that each arm is loaded. Fewer than {_LEAST_LOADS} are a quick look without a verdict",
        _LATENCY,
        minimum=1,
        maximum=_MOST_LOADS,
        needs=_LOADED,
    )
    until: Literal["decided"] | None = option(None, "load again until every verdict is decided", _LATENCY, needs=_TIMED)
    max_loads: int = option(
        8, "with --until: load no more often", _LATENCY, minimum=_LEAST_LOADS, maximum=_MOST_LOADS, needs=_UNTIL
    )
    max_minutes: float | None = option(
        None, "with --until: begin no load after so many minutes", _LATENCY, minimum=1, needs=_UNTIL
    )
    aa: bool = option(False, "measure the first arm a second time as well, as a check", _LATENCY)
    seed: int = option(0, "of --dataset random", _LATENCY, minimum=0, needs=("dataset", "random"))


@frozen(kw_only=True)
class ServingOptions:
    """How servers are driven."""

    concurrency: tuple[int, ...] = option(
        (),
        "users at once, each of whom waits for an answer before the next request. 0 for none, with --request_rate. "
        "Without it 1, 2, 4 and so on, until more users add nothing",
        _SERVING,
        metavar="N,...",
        minimum=0,
        needs=_SERVED,
    )
    request_rate: tuple[float, ...] = option(
        (), "requests per second, which arrive at random (Poisson)", _SERVING, metavar="RATE,...", needs=_SERVED
    )
    num_requests: int = option(
        100, "requests of each point, at least. There are 10 of every user too", _SERVING, minimum=1, needs=_SERVED
    )
    lengths: Path | None = option(
        None,
        "JSON lines with input_length and output_length, in place of --input_len and --output_len",
        _SERVING,
        metavar="FILE",
        needs=_SERVED,
    )
    ttft_ms: float | None = option(
        None, "a user waits so long for the first token at most, for goodput", _SERVING, metavar="MS", needs=_SERVED
    )
    tpot_ms: float | None = option(
        None, "a user waits so long for every later token at most, for goodput", _SERVING, metavar="MS", needs=_SERVED
    )
    prefix_caching: bool = option(False, "let servers compute what prompts begin with once", _SERVING, needs=_SERVED)
    port: int | None = option(
        None, "of the arms' servers. Without it a free one", _SERVING, minimum=1, maximum=65535, needs=_SERVED
    )


@frozen(kw_only=True)
class ProfilerOptions:
    """Which profiler traces kernels."""

    profiler: Literal["auto", "nsys", "torch"] = option(
        "auto",
        "what traces kernels. auto: nsys where it is on PATH and there is a GPU, else torch",
        _LATENCY,
        needs=_TRACED,
    )
    nsys_args: str = option(
        "",
        "more options of nsys profile, in place of ours of the same name",
        _LATENCY,
        metavar='"--OPTION ..."',
        is_verbatim=True,
        needs=_TRACED,
    )
    keep_report: bool = option(
        False,
        "keep raw reports of nsys beside traces. They hold the environment and what was printed, with secrets",
        _LATENCY,
        needs=_TRACED,
    )


@frozen(kw_only=True)
class TaskOptions(DropOptions):
    """Which tasks of lm-eval arms are evaluated on. Names are lm-eval's own."""

    tasks: tuple[str, ...] = option(
        (), "tasks, groups and YAML files that every arm is evaluated on", _TASKS, metavar="NAME,...", is_path=True
    )
    limit: float | None = option(None, "documents of each task. Below 1 it is a share", _TASKS, metavar="N")
    num_fewshot: int | None = option(
        None, "examples in every prompt. Without it what each task says", _TASKS, minimum=0, metavar="N"
    )
    apply_chat_template: bool = option(False, "put prompts into the model's chat template", _TASKS)
    gen_kwargs: str = option(
        "", "generation arguments in place of the tasks' own", _TASKS, metavar="KEY=VALUE,...", is_verbatim=True
    )
    repeats: int = option(
        1, "evaluate tasks with sampled answers so often, each time with other seeds", _TASKS, minimum=1
    )


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

    mode: Literal["perf", "nsys"] = option("perf", "nsys: record one iteration of each shape instead", _LATENCY)
    layerwise_nvtx: bool = option(
        False, "with --mode nsys: put an NVTX range around every layer", _LATENCY, needs=("mode", "nsys")
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


@frozen(kw_only=True)
class SensitivityOptions(OutputOptions, QualityOptions):
    """What `moe-eval sensitivity` can be asked."""

    model_path: str | None = option(
        None, "the unquantised checkpoint. Without it the shipped model is measured", _ARMS, is_path=True
    )
    precision: Literal["fp8", "fp8_block", "nvfp4"] = option(
        "nvfp4", "what the experts of one layer at a time are rounded to", _ARMS
    )
    model_args: str = option(
        "",
        "more model arguments, as lm_eval takes them: tokenizer=, dtype=, device=, calibration_windows= and others of "
        "the transformers engine",
        _ARMS,
        metavar="KEY=VALUE,...",
    )
    experts: int = option(0, "quantise so many experts of every layer alone too, the busiest ones", _QUALITY, minimum=0)
    max_kld: float = option(
        0.01,
        "the KLD that the suggested layers keep together",
        _QUALITY,
        minimum=0,
        maximum=100,
        meaning="nats for a token",
    )
    output_dir: Path = option(Path("benchmark_results"), RECORDS, COMMAND)
    config: Path | None = option(None, "a YAML file of these options. The command line wins", COMMAND, metavar="FILE")


MeasuringOptions = RunOptions | PerfOptions | PplOptions
