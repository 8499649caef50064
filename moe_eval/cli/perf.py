"""`moe-eval perf`: the latency and throughput of several precisions on the same prompts, side by side."""

from __future__ import annotations

import argparse
import sys
import uuid
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from moe_eval.cli import common, perf_nsys
from moe_eval.cli.common import Request
from moe_eval.data import prompts
from moe_eval.data.workload import Shape, Workload, shapes
from moe_eval.errors import EngineError, UsageError
from moe_eval.evaluators import latency
from moe_eval.exits import terminable
from moe_eval.machine import hardware
from moe_eval.machine.hardware import Gpu
from moe_eval.report import speed_table
from moe_eval.runner import arm_plan, speed_record, speed_run
from moe_eval.runner.arm_plan import Arm, Skip
from moe_eval.runner.speed_record import Context


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "perf",
        help="latency and throughput of several precisions on the same prompts",
        description="Time the same prompts with every precision, each in a process of its own, and write a JSON record "
        "for each (perf_PRECISION_smXY.json, or _cpu). Where the arms fit on the GPU together they take turns (A B B "
        "A); where they do not, each is loaded again in every block. At the end a table compares them with the first.",
    )
    common.add(parser)
    parser.add_argument("--batch_size", default="1", help="one or several, such as 1,8,32")
    parser.add_argument("--input_len", type=int, default=512, help="tokens of every prompt")
    parser.add_argument("--output_len", type=int, default=256, help="tokens that every sequence makes")
    parser.add_argument("--num_iterations", type=int, default=20, help="timed ones of each arm and shape, at least")
    parser.add_argument("--warmup_iterations", type=int, default=5, help="at least so many before, until they settle")
    parser.add_argument("--blocks", type=int, default=4, help="how often to load arms that do not fit together")
    parser.add_argument("--aa", action="store_true", help="measure the first arm against itself as well, as a check")
    parser.add_argument("--dataset", default="wikitext", help=f"text of the prompts: {', '.join(prompts.SOURCES)}")
    parser.add_argument("--seed", type=int, default=0, help="of --dataset random")
    parser.add_argument("--mode", choices=("perf", "nsys"), default="perf", help="nsys: record one iteration instead")
    parser.add_argument("--layerwise_nvtx", action="store_true", help="with --mode nsys: an NVTX range around layers")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    asked = shapes(common.numbers(args.batch_size), args.input_len, args.output_len)
    for name, least in (("num_iterations", 1), ("warmup_iterations", 5), ("blocks", 1)):
        if getattr(args, name) < least:
            raise UsageError(f"--{name} {getattr(args, name)} is too few; give {least} or more.")
    if args.layerwise_nvtx and args.mode != "nsys":
        raise UsageError("--layerwise_nvtx slows every layer down; give it with --mode nsys.")
    if args.mode == "perf":
        latency.refuse_profiler()
    request = common.read(args)
    gpus = common.gpus(request)
    planned = speed_run.fitted(arm_plan.plan(request.asked, gpus), asked, gpus)
    arms = [each for each in planned if isinstance(each, Arm)]
    tokenizer = request.tokenizer_of(arms[0]) if arms else ""
    settings = [each.settings for each in arms]
    work = prompts.of_arms(args.dataset, args.seed, asked, settings, tokenizer) if arms else None
    if args.mode == "nsys":
        common.make_folder(args.output_dir)
        perf_nsys.run(args, request, planned, work)
        return
    names = [each.precision for each in planned] + [f"{each.precision}{speed_run.AGAIN}" for each in arms if args.aa]
    with common.own_folder(args.output_dir, [f"perf_{name}_{common.place(gpus)}" for name in names]):
        _measure(args, request, planned, work, shapes=asked, gpus=gpus)


def _measure(
    args: argparse.Namespace,
    request: Request,
    planned: Sequence[Arm | Skip],
    work: Workload | None,
    *,
    shapes: tuple[Shape, ...],
    gpus: tuple[Gpu, ...],
) -> None:
    from tqdm import tqdm

    arms = [each for each in planned if isinstance(each, Arm)]
    how = speed_run.Asked(
        shapes=shapes,
        iterations=args.num_iterations,
        warm_ups=args.warmup_iterations,
        blocks=args.blocks,
        again=args.aa,
        folder=args.output_dir,
        where=common.place(gpus),
    )
    context = Context(
        run_id=uuid.uuid4().hex,
        workload=work,
        schedule=speed_run.schedule(arms, how, gpus),
        machine=asdict(replace(hardware.machine(), gpus=gpus)),
        versions=hardware.versions(),
        git=hardware.git_state(),
        asked=common.shown(args),
        fusion_disabled=bool(args.disable_fusion),
    )
    for each in planned:
        if isinstance(each, Skip):
            print(each)
            speed_run.write(how, each.precision, speed_record.skipped(each.precision, each.reason, context))
    if not arms:
        print("No precision was left to run; the lines above say what each of them needs.", file=sys.stderr)
        return
    runs = speed_run.arm_runs(arms, request.asked.engine, request.tokenizer, again=args.aa)
    total = len(runs) * len(shapes) * context.schedule.iterations
    with terminable(), tqdm(total=total, desc=context.schedule.mode, unit="iteration") as bar:
        found = speed_run.measure(runs, how, context, gpus, bar.update)
    _tell(found)


def _tell(found: Sequence[dict[str, Any]]) -> None:
    """Print the comparison, the reference first, and end as badly as the worst arm."""
    finished = [each for each in found if each["status"] == "finished"]
    failed = [each for each in found if each["status"] != "finished"]
    for each in failed:
        print(f"{each['arm']} failed: {each['error']}", file=sys.stderr)
    if finished:
        print(speed_table.render(finished))
    if failed:
        raise EngineError(f"{len(failed)} of {len(found)} arms failed; see the lines above.")
