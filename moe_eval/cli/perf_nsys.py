"""`moe-eval perf --mode nsys`: one iteration for Nsight Systems to record, or the command that has it recorded."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

from moe_eval.cli import common
from moe_eval.cli.common import Request
from moe_eval.data.workload import Shape, Workload
from moe_eval.engines import registry
from moe_eval.engines.base import GenerationRequest
from moe_eval.errors import UsageError
from moe_eval.evaluators import latency
from moe_eval.machine import nsys
from moe_eval.runner import fit
from moe_eval.runner.arm_plan import Arm, Skip


def run(args: argparse.Namespace, request: Request, planned: Sequence[Arm | Skip], work: Workload | None) -> None:
    """Outside Nsight Systems print its command for every precision and shape; inside run one iteration of one of them.

    Raises:
        UsageError: the engine runs in another process, more than one iteration is asked for, or there is no GPU.
    """
    arms = []
    for each in planned:
        if isinstance(each, Skip):
            print(each, file=sys.stderr)  # standard output is for commands
        else:
            arms.append(each)
    kind = registry.named(request.asked.engine)
    if args.layerwise_nvtx and kind.layer_ranges is None:
        raise UsageError(f"{kind.title} puts no ranges around its layers; leave out --layerwise_nvtx.")
    if work is None:
        return
    if not nsys.inside():
        for each in arms:
            for shape in work.shapes:
                report = args.output_dir / f"profile_{each.precision}_{common.place(common.gpus(request))}.nsys-rep"
                if len(work.shapes) > 1:
                    report = report.with_stem(f"{report.stem}_{shape.name}")
                print(nsys.NsysCommand({}, nsys.arguments(_again(each, shape), report), report))
        return
    nsys.check_gpu()
    if len(arms) > 1 or len(work.shapes) > 1:
        raise UsageError(
            "Nsight Systems records one iteration a session; give one of --precisions and one --batch_size."
        )
    _once(arms[0], args, request, work)


def _again(each: Arm, shape: Shape) -> list[str]:
    """This command for one precision and batch size. What stands last wins, so the rest is repeated as it was typed."""
    one = ["--precisions", each.precision.partition("-")[0], "--batch_size", str(shape.batch_size)]
    return ["moe-eval", *sys.argv[1:], *one]


def _once(each: Arm, args: argparse.Namespace, request: Request, work: Workload) -> None:
    from moe_eval.checkpoint import tokenizer

    kind = registry.named(request.asked.engine)
    options = dict(each.settings.options)
    if not kind.cpu:  # a capture range opened in another process than the engine's would record nothing of it
        if fit.gpu_count(options) > 1:
            raise UsageError(
                "This mode records an engine in its own process, and on several GPUs it is in others; give one, or put "
                "nsys around the whole command as the README says."
            )
        options["worker"] = "in_process"
    if args.layerwise_nvtx:
        options |= kind.layer_ranges or {}
    settings = replace(each.settings, options=options)
    shape = work.shapes[0]
    prompts = work.prompts(shape)
    ask = GenerationRequest(max_new_tokens=shape.output_len, ignore_eos=True)
    tokens = tokenizer.load(request.tokenizer_of(each), settings.revision, settings.trust_remote_code)
    engine = registry.load(request.asked.engine, settings, tokens)
    try:
        latency.check(engine, shape)
        for _ in range(args.warmup_iterations):
            engine.generate(prompts, ask)
        nsys.record_once(f"moe_eval {each.precision} {shape.name}", lambda: engine.generate(prompts, ask))
    finally:
        engine.close()
    print(f"Recorded one iteration of {shape.name} on {each.precision} after {args.warmup_iterations} of warm-up.")
