"""`moe-eval run`: every arm, every evaluator, one comparison."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moe_eval.checkpoint import contents
from moe_eval.cli import common, compare
from moe_eval.comparison import gate
from moe_eval.data import scoring_windows
from moe_eval.data.workload import shapes
from moe_eval.emulation.model import SCOPES
from moe_eval.engines import registry
from moe_eval.errors import EngineError, TrackingError, UsageError
from moe_eval.evaluators import latency
from moe_eval.exits import Ended, code, terminable
from moe_eval.report import write
from moe_eval.runner import opened
from moe_eval.runner import plan as planning
from moe_eval.runner.folder import RunFolder
from moe_eval.runner.plan import Asked
from moe_eval.runner.run import Request, Run
from moe_eval.runner.steps import EVALUATORS, Step
from moe_eval.tracking import plan_run

_LONGEST = 1_000_000  # seconds of a step


def add(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "run",
        help="perplexity, latency and kernels of several precisions, with a verdict",
        description="Run every evaluator on every precision, each arm in a process of its own that is loaded once, and "
        "compare them with the first. The plan is shown first. Everything is written to --output_dir as it comes: a "
        "run that was stopped goes on with the same command and --resume.",
    )
    common.add(parser)
    parser.set_defaults(output_dir=Path("moe_eval_run"))
    parser.add_argument("--config", metavar="FILE", help="a YAML file of these options; the command line wins")
    parser.add_argument("--evaluators", default=",".join(EVALUATORS), help="some of perplexity, latency, kernels")
    parser.add_argument("--emulate", action="store_true", help="compute FP8 and NVFP4 from --model_path, quality only")
    parser.add_argument("--scope", choices=SCOPES, default="experts", help="what --emulate rounds")
    parser.add_argument(
        "--dataset", default="wikitext", help=f"scored, and cut into prompts: {', '.join(scoring_windows.DATASETS)}"
    )
    parser.add_argument("--input_len", type=int, default=512, help="tokens of a window and of a prompt")
    parser.add_argument("--num_chunks", type=int, default=100, help="windows to score, 0 for all")
    parser.add_argument("--batch_size", default="1", help="one or several, such as 1,8,32")
    parser.add_argument("--output_len", type=int, default=256, help="tokens that every sequence makes")
    parser.add_argument("--num_iterations", type=int, default=20, help="timed ones of each arm and shape, at least")
    parser.add_argument("--warmup_iterations", type=int, default=5, help="at least so many before, until they settle")
    parser.add_argument("--blocks", type=int, default=1, help="loads of every arm, where arms do not fit together")
    parser.add_argument("--gate", metavar="CONDITIONS", help='such as "speed>=1.2,ln_ppl<=0.01": exit code 0, 1 or 2')
    parser.add_argument("--timeout", type=float, default=3600, help="seconds that an arm may take for one step")
    parser.add_argument("--dry_run", action="store_true", help="show the plan and stop")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --output_dir")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    conditions = gate.parse(args.gate) if args.gate is not None else ()
    asked, request = _asked(args)
    gpus = common.gpus(request)
    kind = registry.named(asked.arms.engine)
    planned = planning.make(asked, gpus, routed=kind.routing is not None, before=_before(args))
    print(planning.tell(planned, asked, gpus), flush=True)
    if args.dry_run:
        return
    nothing = {"pairs": [], "skipped": write.skipped({"skipped": planned.skipped})}
    if not planned.arms:
        print("No precision was left to run; the lines above say what each of them needs.", file=sys.stderr)
        if conditions:
            compare.settle(nothing, conditions)
        return
    if "latency" in asked.evaluators:
        latency.refuse_profiler()
    common.make_folder(args.output_dir)
    run = Run(
        Request(
            asked=asked,
            tokenizer=request.tokenizer,
            shown=common.shown(args),
            folder=args.output_dir,
            where=common.place(gpus),
            fusion_disabled=bool(args.disable_fusion),
            patience=args.timeout,
            resume=args.resume,
        ),
        planned,
        gpus,
    )
    tracked = _Tracked(args.output_dir)
    failed: list[str] = []
    try:
        failed = _execute(run, tracked.open)
        found = _told(args.output_dir)
    finally:
        tracked.close()
    errors: list[Exception] = []
    if failed:
        said = f"{len(failed)} of {len(planned.steps)} steps failed; {args.output_dir} holds the rest, and the same "
        errors.append(EngineError(f"{said}command with --resume tries them again."))
    if tracked.refused:
        errors.append(TrackingError(tracked.refused))
    for error in errors:
        print(f"moe-eval: {error}", file=sys.stderr)
    if conditions:
        compare.settle(found or nothing, conditions, len(failed))
    elif errors:
        raise Ended(code(errors[0]))


def _before(args: argparse.Namespace) -> dict[str, Any] | None:
    """The run that goes on, once its processes have ended: until then they hold memory, which a plan counts."""
    folder = RunFolder(args.output_dir)
    if not args.resume or not folder.exists():
        return None
    with folder.locked():
        found = folder.run()
    opened.check_asked(found, common.shown(args), args.output_dir)
    return found


def _told(folder: Path) -> dict[str, Any] | None:
    """Print the verdict and where the report is; None where nothing could be measured."""
    if not (folder / write.COMPARISON).is_file():
        return None
    found = contents.read_object(folder / write.COMPARISON)
    print(f"{write.told(found)}\nReport: {folder / write.PAGE}")
    return found


def _asked(args: argparse.Namespace) -> tuple[Asked, common.Request]:
    evaluators = tuple(name.strip() for name in args.evaluators.split(",") if name.strip())
    unknown = [name for name in evaluators if name not in EVALUATORS]
    if unknown or not evaluators:
        raise UsageError(f"--evaluators {args.evaluators} has to name some of {', '.join(EVALUATORS)}.")
    least = {"num_iterations": 1, "warmup_iterations": latency.LEAST_WARM_UPS, "blocks": 1}
    for name, value in least.items():
        if getattr(args, name) < value:
            raise UsageError(f"--{name} {getattr(args, name)} is too few; give {value} or more.")
    if not 1 <= args.timeout <= _LONGEST:
        raise UsageError(f"--timeout {args.timeout:g} is no time for a step; give 1 to {_LONGEST} seconds.")
    request = common.read(args, emulate=args.emulate, scope=args.scope)
    asked = Asked(
        arms=request.asked,
        evaluators=tuple(name for name in EVALUATORS if name in evaluators),
        shapes=shapes(common.numbers(args.batch_size), args.input_len, args.output_len),
        dataset=args.dataset,
        input_len=args.input_len,
        num_chunks=args.num_chunks,
        iterations=args.num_iterations,
        warm_ups=args.warmup_iterations,
        blocks=args.blocks,
    )
    return asked, request


class _Tracked:
    """A run in MLflow, whose trouble stops no measurement."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._opened = False
        self.refused: str | None = None

    def open(self) -> None:
        """Show that the run has begun."""
        self._opened = True
        try:
            print(f"MLflow: {plan_run.open_run(self._folder).describe()}", flush=True)
        except TrackingError as error:
            print(f"moe-eval: {error}", file=sys.stderr)

    def close(self) -> None:
        """Log what there is, however the run ended."""
        if not self._opened:  # it never was a run of this command's
            return
        try:
            print(f"MLflow: {plan_run.log(self._folder).describe()}")
        except TrackingError as error:
            self.refused = str(error)


def _execute(run: Run, opened: Callable[[], None]) -> list[str]:
    from tqdm import tqdm

    with terminable(), tqdm(total=0, unit="step") as bar:

        def ready(steps: Any) -> None:
            bar.total = len(steps)
            bar.clear()
            opened()
            bar.refresh()

        def begun(step: Step) -> None:
            bar.set_description(f"{step.arm} {step.name}")

        def done(step: Step, reason: str | None) -> None:
            if reason is not None:
                bar.write(f"{step.arm} {step.name} failed: {reason}", file=sys.stderr)
            bar.update()

        return run.execute(begun, done, ready)
