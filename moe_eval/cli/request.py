"""Turns the options of run, perf and ppl into what the runner is asked for."""

from __future__ import annotations

import json
import sys

from moe_eval.checkpoint import shipped as shipped_model
from moe_eval.cli import arms
from moe_eval.cli.arms import Common
from moe_eval.cli.options import arm_text
from moe_eval.cli.options.arms import EmulationOptions
from moe_eval.cli.options.commands import DEMO
from moe_eval.cli.options.compare import rules_of
from moe_eval.cli.options.latency import LatencyOptions, ProfilerOptions
from moe_eval.cli.options.measuring import MeasuringOptions, PerfOptions, RunOptions
from moe_eval.cli.options.option import PRINTED, options_of
from moe_eval.cli.options.quality import QualityOptions
from moe_eval.cli.options.sensitivity import SensitivityOptions
from moe_eval.data import served_requests
from moe_eval.data.harness_tasks import TaskOptions
from moe_eval.data.workload import shapes
from moe_eval.engines import registry
from moe_eval.engines.options import flag
from moe_eval.errors import UsageError
from moe_eval.machine import hardware, nsys
from moe_eval.machine.hardware import Gpu
from moe_eval.machine.nsys import NsysSettings
from moe_eval.records import disk
from moe_eval.records.labels import OptionValue
from moe_eval.records.run import EVALUATORS, LEAST_WARM_UPS, EvaluatorName
from moe_eval.records.serving import ServingLimits
from moe_eval.runner.request import ArmsRequest, Command, NamedArm, RunRequest, ServingRequest, SharedSettings

_DEMO_NOTE = "This is the demo on moe_eval's tiny Qwen3-MoE, which is not a model to judge."
# model arguments of lm_eval that options of a command stand for
_OPTIONS = {
    "pretrained": "--model_path",
    "engine": "--engine",
    "precision": "--precisions",
    "batch_size": "--batch_size",
    "emulate": "--emulate",
    "scope": "--scope",
}

# options that are a model argument of some engines
_ENGINES_OF = {"disable_fusion": ("trtllm",), "stall_timeout": ("trtllm", "vllm")}


def request_of(options: MeasuringOptions) -> RunRequest:
    """What the options ask for.

    Raises:
        UsageError: options that contradict each other, or that the engine does not take.
    """
    if isinstance(options, LatencyOptions) and options.until and options.warmup_iterations < LEAST_WARM_UPS:
        raise UsageError(
            f"Fewer than {LEAST_WARM_UPS} --warmup_iterations are a quick look, which --until decided never ends. Give "
            "more, or leave --until out."
        )
    arms_request, tokenizer = _arms(options)
    latency = options if isinstance(options, LatencyOptions) else None
    quality = options if isinstance(options, QualityOptions) else None
    command: Command = "perf" if isinstance(options, PerfOptions) else "ppl" if latency is None else "run"
    evaluators: tuple[EvaluatorName, ...] = ("latency",) if command == "perf" else ("quality",)
    if isinstance(options, RunOptions):
        chosen = {*options.evaluators, *(("tasks",) if options.tasks else ())}
        evaluators = tuple(name for name in EVALUATORS if name in chosen)
    return RunRequest(
        command=command,
        arms=arms_request,
        tokenizer=tokenizer,
        evaluators=evaluators,
        shapes=shapes(latency.batch_size, options.input_len, latency.output_len) if latency else (),
        dataset=options.dataset,
        seed=latency.seed if latency else 0,
        input_len=options.input_len,
        num_chunks=quality.num_chunks if quality else 0,
        iterations=latency.num_iterations if latency else 1,
        warm_ups=latency.warmup_iterations if latency else 0,
        loads=latency.loads if latency else 1,
        most_loads=latency.max_loads if latency and latency.until else None,
        most_minutes=latency.max_minutes if latency else None,
        min_gain=rules_of(options).min_gain,
        repeat_reference=latency.aa if latency else False,
        folder=options.output_dir,
        options=recorded(options),
        fusion_disabled=options.disable_fusion,
        timeout_s=options.timeout,
        resume=options.resume,
        nsys=nsys_of(options, arms_request) if isinstance(options, RunOptions) and "kernels" in evaluators else None,
        tasks=_tasks(options) if isinstance(options, RunOptions) and "tasks" in evaluators else None,
        serving=_serving(options) if isinstance(options, RunOptions) and "serving" in evaluators else None,
    )


def _serving(options: RunOptions) -> ServingRequest:
    """How servers are driven.

    Raises:
        UsageError: there is no load point, or one twice, or a limit that nobody can keep.
    """
    for name, limit in (("ttft_ms", options.ttft_ms), ("tpot_ms", options.tpot_ms)):
        if limit is not None and limit <= 0:
            raise UsageError(f"--{name} {limit:g} is no time in which a token can come. Give milliseconds above 0.")
    users = () if options.concurrency == (0,) else options.concurrency or served_requests.sweep()
    return ServingRequest(
        points=served_requests.points(users, options.request_rate),
        output_len=options.output_len,
        is_sweep=not options.concurrency,
        lengths=options.lengths,
        minimum=options.num_requests,
        limits=ServingLimits(options.ttft_ms, options.tpot_ms),
        port=options.port,
        prefix_caching=options.prefix_caching,
    )


def _tasks(options: RunOptions) -> TaskOptions:
    """How arms are evaluated on tasks of the harness.

    Raises:
        UsageError: there are none, or a value that makes no sense.
    """
    from lm_eval.utils import simple_parse_args_string

    if not options.tasks:
        raise UsageError("--evaluators has tasks, and --tasks names none. Add --tasks gsm8k, for example.")
    text = options.gen_kwargs.strip()
    try:
        gen_kwargs = json.loads(text) if text.startswith("{") else simple_parse_args_string(text)
    except (ValueError, RecursionError):
        raise UsageError("--gen_kwargs cannot be read. Write KEY=VALUE,... or a JSON object.") from None
    return TaskOptions(
        tasks=options.tasks,
        limit=options.limit,
        num_fewshot=options.num_fewshot,
        apply_chat_template=options.apply_chat_template,
        gen_kwargs=gen_kwargs,
        repeats=options.repeats,
    )


def say_what_runs(options: MeasuringOptions) -> None:
    """Say on standard error where the shipped model stands in for the user's own."""
    is_demo = all(getattr(options, name, None) == value for name, value in DEMO.items())
    if _is_shipped(options) and not options.quiet:
        note = _DEMO_NOTE if is_demo else shipped_model.SHIPPED_NOTE
        print(f"moe-eval: {note} Give --model_path for yours.", file=sys.stderr)


def nsys_of(options: ProfilerOptions, arms: ArmsRequest) -> NsysSettings | None:
    """How Nsight Systems traces kernels. None where torch's profiler does.

    Raises:
        UsageError: it cannot be used here, or its options make no sense.
    """
    settings = NsysSettings(nsys.options_of(options.nsys_args), options.keep_report)
    has_gpu = bool(hardware.gpus_from(arms.settings.get("device")))
    if options.profiler == "nsys" and not nsys.is_installed():
        raise UsageError(
            "--profiler nsys needs Nsight Systems, and nsys is not on PATH. Install it, or give --profiler torch."
        )
    if options.profiler == "nsys" and not has_gpu:
        raise UsageError(f"{nsys.NO_GPU} Run it where one is, or give --profiler torch.")
    if options.profiler == "nsys" and nsys.inside():
        raise UsageError("moe-eval run starts nsys itself, and it runs under nsys here. Run it without.")
    if options.profiler != "torch" and nsys.is_installed() and has_gpu and not nsys.inside():
        return settings
    if options.nsys_args or options.keep_report:
        raise UsageError(
            "--nsys_args and --keep_report are for Nsight Systems, and torch's profiler traces kernels here. Leave "
            "them out, or give --profiler nsys."
        )
    return None


def _arms(options: MeasuringOptions) -> tuple[ArmsRequest, str | None]:
    """The arms, and their tokenizer. None where each checkpoint has its own."""
    emulation = options if isinstance(options, EmulationOptions) else None
    emulate = emulation.emulate if emulation else None
    is_shipped = _is_shipped(options)
    engine = options.engine or ("transformers" if emulate or is_shipped else "trtllm")
    arguments = arm_text.model_args(options.model_args)
    tokenizer = arguments.pop("tokenizer", None)
    for name in arguments:
        if name in _OPTIONS:
            raise UsageError(f"--model_args has {name}, which is an option of its own here. Give {_OPTIONS[name]}.")
    settings = shared_settings(arguments)
    if options.moe_backend != "auto":
        arguments["moe_backend"] = options.moe_backend
    paths = {
        "model": str(shipped_model.SHIPPED) if is_shipped else options.model_path,
        "fp8": options.fp8_model_path,
        "nvfp4": options.nvfp4_model_path,
    }
    of_engines = {name: value for name in _ENGINES_OF if (value := getattr(options, name))}
    check = registry.named if options.dry_run else registry.check
    named_arms = _named(options, Common(engine, paths, arguments, of_engines, settings, check, shared_settings))
    engines = [arm.engine for arm in named_arms] or [engine]
    for name in of_engines:
        if not {*_ENGINES_OF[name]} & {*engines}:
            titles = " and ".join(registry.named(accepting).title for accepting in _ENGINES_OF[name])
            raise UsageError(f"--{name} is a setting of {titles}. Leave it out.")
    if not named_arms:
        if registry.named(engine).is_endpoint:
            raise UsageError(f"--engine {engine} is for arms. Give --arm NAME:engine={engine},base_url=URL,model=NAME.")
        arguments |= of_engines
        check(engine)
        registry.check_options(engine, arguments)
    request = ArmsRequest(
        engine=engines[0],
        precisions=options.precisions,
        paths=paths,
        emulate=emulate,
        scope=emulation.scope if emulation else "experts",
        options=arguments,
        settings=settings,
        arms=named_arms,
    )
    return request, None if tokenizer is None else str(tokenizer)


def _named(options: MeasuringOptions, common: Common) -> list[NamedArm]:
    """The arms that have names of their own. Empty where they are called by their precision."""
    if not options.arms:
        return []
    if options.precisions != options_of(type(options))["precisions"].default:
        raise UsageError("--arm and --precisions both say which arms there are. Give one of them.")
    if isinstance(options, EmulationOptions) and options.emulate:
        raise UsageError("--emulate is for --precisions. Give emulate=true to an --arm on transformers.")
    named_arms = arms.named(options.arms, common)
    for name in ("model_path", "fp8_model_path", "nvfp4_model_path"):
        label, path = f"--{name}", getattr(options, name)
        if path is not None and path not in [arm.checkpoint for arm in named_arms]:
            raise UsageError(f"No --arm has the checkpoint of {label}. Leave {label} out.")
    return named_arms


def _is_shipped(options: MeasuringOptions) -> bool:
    """Whether some arm has no checkpoint but the shipped model."""
    settings = [arm_text.read(text)[1] for text in options.arms]
    have_checkpoints = settings and all({"checkpoint", "pretrained", "base_url"} & set(keys) for keys in settings)
    return options.model_path is None and not have_checkpoints


def shared_settings(arguments: dict[str, object]) -> SharedSettings:
    """Take what is no engine's own but a field of EngineSettings out of the model arguments.

    Raises:
        UsageError: a value that no engine can take.
    """
    import torch

    settings = SharedSettings()
    is_trusted = flag(arguments, "trust_remote_code")
    if is_trusted is not None:
        settings["trust_remote_code"] = is_trusted
    if "dtype" in arguments:
        settings["dtype"] = name = str(arguments.pop("dtype"))
        dtype = torch.float32 if name == "auto" else getattr(torch, name, None)
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise UsageError(f"dtype={name} is no floating-point type of torch. Give bfloat16, for example.")
    if "device" in arguments:
        settings["device"] = str(arguments.pop("device"))
        hardware.check_device(settings["device"])
    if "revision" in arguments:
        settings["revision"] = str(arguments.pop("revision"))
    return settings


def recorded(options: MeasuringOptions | SensitivityOptions) -> dict[str, OptionValue]:
    """The options by name as records keep them: secrets removed, without those that have no value."""
    arguments = disk.redact(arm_text.model_args(options.model_args))
    values: dict[str, object] = {
        option.name: getattr(options, option.name)
        for option in options_of(type(options)).values()
        if option.group != PRINTED
    }
    values["model_args"] = ",".join(f"{key}={value}" for key, value in arguments.items())
    texts = map(arm_text.read, getattr(options, "arms", ()))
    values["arms"] = tuple(arm_text.write(name, disk.redact(settings)) for name, settings in texts) or None
    redacted = disk.redact({name: value for name, value in values.items() if value is not None})
    return {name: _plain(value) for name, value in redacted.items()}


def _plain(value: object) -> OptionValue:
    if isinstance(value, list):  # redact makes lists of tuples
        return tuple(value)
    return value if isinstance(value, (bool, int, float)) else str(value)


def gpus_of(request: RunRequest) -> tuple[Gpu, ...]:
    """The GPUs that the arms may use: those that torch sees, from the one on that `device` names."""
    return hardware.gpus_from(request.arms.settings.get("device"))
