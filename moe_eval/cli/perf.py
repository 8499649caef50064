"""`moe-eval perf`, and its `--mode nsys`: one iteration for Nsight Systems to record, or the command for that."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

from moe_eval.cli import execute
from moe_eval.cli.options import arm_text
from moe_eval.cli.options.measuring import PerfOptions
from moe_eval.cli.output import Conclusion
from moe_eval.cli.paths import make_folder
from moe_eval.cli.request import gpus_of, request_of, say_what_runs
from moe_eval.data.workload import Shape, Workload
from moe_eval.engines import registry
from moe_eval.engines.base import GenerationRequest
from moe_eval.errors import UsageError
from moe_eval.evaluators import latency
from moe_eval.machine import nsys
from moe_eval.outside.words import one_line
from moe_eval.runner import fit
from moe_eval.runner import plan as planning
from moe_eval.runner.arm_plan import Arm
from moe_eval.runner.folder import place
from moe_eval.runner.request import RunRequest


def run(options: PerfOptions) -> Conclusion:
    """Run the subcommand.

    Raises:
        UsageError: options that do not go together.
    """
    if options.mode == "nsys":
        return _record(options)
    return execute.run(options)


def _record(options: PerfOptions) -> Conclusion:
    """Outside Nsight Systems print its command for every precision and shape. Inside it run one iteration.

    Raises:
        UsageError: the engine runs in another process, more than one iteration is asked for, or there is no GPU.
    """
    request = request_of(options)
    gpus = gpus_of(request)
    plan = planning.make(request, gpus)
    work = planning.workload(request, plan.arms) if plan.arms else None
    say_what_runs(options)
    make_folder(request.folder)
    for skipped in plan.skipped:
        if not options.quiet:  # standard output is for commands
            print(one_line(f"Skipping {skipped.arm}: {skipped.reason}"), file=sys.stderr)
    for kind in (registry.named(arm.engine) for arm in plan.arms):
        if options.layerwise_nvtx and kind.layer_ranges is None:
            raise UsageError(f"{kind.title} puts no ranges around its layers. Leave out --layerwise_nvtx.")
    commands = []
    if work is not None and not nsys.inside():
        for arm in plan.arms:
            for shape in work.shapes:
                report = request.folder / f"profile_{arm.name}_{place(gpus)}.nsys-rep"
                if len(work.shapes) > 1:
                    report = report.with_stem(f"{report.stem}_{shape.name}")
                commands.append(
                    str(nsys.NsysCommand({}, nsys.arguments(_repeated(options, arm, shape), report), report))
                )
                print(one_line(commands[-1]))
    if work is None or commands:
        return Conclusion({"commands": commands, "skipped": plan.skipped}, commands)
    nsys.check_gpu()
    if len(plan.arms) > 1 or len(work.shapes) > 1:
        raise UsageError(
            "Nsight Systems records one iteration a session. Give one of --precisions or one --arm, and one "
            "--batch_size."
        )
    sentence = _run_once(plan.arms[0], options, request, work)
    print(sentence)
    return Conclusion({"arm": plan.arms[0].name, "shape": work.shapes[0].name, "recorded": sentence}, [sentence])


def _repeated(options: PerfOptions, arm: Arm, shape: Shape) -> list[str]:
    """This command for one arm and batch size. What stands last wins, so the rest is repeated as it was typed.

    Arms add up, so they are left out but for the one.
    """
    typed, single = sys.argv[1:], ["--precisions", arm.precision.partition("-")[0]]
    if options.arms:
        places = [at for at, text in enumerate(typed) if text == "--arm"]
        typed = [
            text
            for at, text in enumerate(typed)
            if at not in places and at - 1 not in places and not text.startswith("--arm=")
        ]
        single = ["--arm", next(text for text in options.arms if arm_text.read(text)[0] == arm.name)]
    return ["moe-eval", *typed, *single, "--batch_size", str(shape.batch_size)]


def _run_once(arm: Arm, options: PerfOptions, request: RunRequest, work: Workload) -> str:
    """Run one iteration for Nsight Systems, and say so."""
    from moe_eval.checkpoint import tokenizer

    kind = registry.named(arm.engine)
    os.environ.update(arm.environment)  # before the engine's library is imported
    arguments = dict(arm.settings.options)
    if not kind.cpu:  # a capture range opened in another process than the engine's would record nothing of it
        if fit.gpu_count(arguments) > 1:
            raise UsageError(
                "This mode records an engine in its own process, and on several GPUs it is in others. Give one GPU, or "
                "use moe-eval run --profiler nsys, which traces them all."
            )
        arguments["worker"] = "in_process"
    if options.layerwise_nvtx:
        arguments |= kind.layer_ranges or {}
    settings = replace(arm.settings, options=arguments)
    shape = work.shapes[0]
    batch = work.prompts(shape)
    generation = GenerationRequest(max_new_tokens=shape.output_len, ignore_eos=True)
    tokens = tokenizer.load(_tokenizer(request, arm), settings.revision, settings.trust_remote_code)
    engine = registry.load(arm.engine, settings, tokens)
    try:
        latency.check(engine, shape)
        for _ in range(request.warm_ups):
            engine.generate(batch, generation)
        with nsys.capture(f"moe_eval {arm.name} {shape.name}"):
            engine.generate(batch, generation)
    finally:
        engine.close()
    return f"Recorded one iteration of {shape.name} on {arm.name} after {request.warm_ups} of warm-up."


def _tokenizer(request: RunRequest, arm: Arm) -> str:
    """The folder or hub name of an arm's tokenizer."""
    return request.tokenizer or arm.settings.checkpoint
