"""`moe-eval ppl`: the perplexity of several precisions over the same windows, side by side."""

from __future__ import annotations

import argparse
import sys
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from moe_eval.cli import common
from moe_eval.cli.common import Request
from moe_eval.data import scoring_windows
from moe_eval.emulation.model import SCOPES
from moe_eval.errors import EngineError
from moe_eval.evaluators import quality_record
from moe_eval.records import disk
from moe_eval.report import quality_table
from moe_eval.runner import arm_plan, arm_process
from moe_eval.runner.arm_plan import Arm, Skip
from moe_eval.runner.arm_process import Found, Job


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "ppl",
        help="perplexity of several precisions over the same windows",
        description="Score the same windows with every precision, each in a process of its own, write a JSON record "
        "for each (ppl_PRECISION_smXY.json, or _cpu), and print a comparison with the first one. The first one also "
        "runs at another batch size: what that changes is the noise floor.",
    )
    common.add(parser)
    parser.add_argument("--emulate", action="store_true", help="compute FP8 and NVFP4 from --model_path")
    parser.add_argument("--scope", choices=SCOPES, default="experts", help="what --emulate rounds")
    parser.add_argument("--dataset", default="wikitext", help=", ".join(scoring_windows.DATASETS))
    parser.add_argument("--input_len", type=int, default=512, help="most tokens in a window")
    parser.add_argument("--num_chunks", type=int, default=100, help="windows to score, 0 for all")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    request = common.read(args, emulate=args.emulate, scope=args.scope)
    gpus = common.gpus(request)
    planned = arm_plan.plan(request.asked, gpus)
    where = common.place(gpus)
    # what can be wrong with the data shows before any model is loaded
    scoring_windows.check(args.input_len, args.num_chunks)
    scoring_windows.read_documents(args.dataset)
    with common.own_folder(args.output_dir, [f"ppl_{each.precision}_{where}" for each in planned]):
        _measure(args, request, planned, where)


def _measure(args: argparse.Namespace, request: Request, planned: Sequence[Arm | Skip], where: str) -> None:
    run_id = uuid.uuid4().hex
    ran: list[tuple[Arm, Job, Found]] = []
    for each in planned:
        stem = args.output_dir / f"ppl_{each.precision}_{where}"
        if isinstance(each, Skip):
            print(each)
            skipped = _record(each.precision, Found("skipped", each.reason), args, run_id)
            disk.write_json(stem.with_suffix(".json"), skipped)
            continue
        job = Job(
            stem=str(stem),
            engine=request.asked.engine,
            settings=each.settings,
            tokenizer=request.tokenizer_of(each),
            dataset=args.dataset,
            input_len=args.input_len,
            num_chunks=args.num_chunks,
        )
        found = arm_process.run(job)
        disk.write_json(stem.with_suffix(".json"), _record(each.precision, found, args, run_id))
        if found.status != "finished":
            print(f"{each.precision} failed: {found.error}", file=sys.stderr)
        ran.append((each, job, found))
    _compared(ran, args, where, run_id)


def _compared(ran: list[tuple[Arm, Job, Found]], args: argparse.Namespace, where: str, run_id: str) -> None:
    """Compare what finished with the first of it, and end as badly as the worst arm."""
    finished = [row for row in ran if row[2].status == "finished"]
    if not ran:
        print("No precision was left to run; the lines above say what each of them needs.", file=sys.stderr)
        return
    if not finished:
        raise EngineError("No precision could be scored; see the lines above.")
    first = finished[0]
    noise = _noise(first, args, where)
    rows = []
    for each, job, found in finished:
        compared = quality_record.compared(first[1].arrays, job.arrays, noise)
        record = _record(each.precision, found, args, run_id)
        rows.append(record | {"reference": first[0].precision, "noise_floor": noise} | compared)
        disk.write_json(args.output_dir / f"ppl_{each.precision}_{where}.json", rows[-1])
    print(quality_table.render(rows))
    if len(finished) < len(ran):
        raise EngineError(f"{len(ran) - len(finished)} of {len(ran)} precisions failed; see the lines above.")


def _noise(reference: tuple[Arm, Job, Found], args: argparse.Namespace, where: str) -> dict[str, Any] | None:
    """What another batch size does to the reference."""
    each, job, _ = reference
    again = replace(
        job,
        stem=str(args.output_dir / f"ppl_{each.precision}_{where}.batch1"),
        settings=replace(each.settings, batch_size=1),
    )
    found = arm_process.run(again)
    if found.status != "finished":
        print(f"The noise floor was not measured: {found.error}", file=sys.stderr)
        return None
    return quality_record.noise(job.arrays, again.arrays)


def _record(name: str, found: Found, args: argparse.Namespace, run_id: str) -> dict[str, Any]:
    return quality_record.record(
        name,
        found.status,
        found.error,
        run_id=run_id,
        labels=found.labels,
        figures=found.figures,
        asked=common.shown(args),
        fusion_disabled=bool(args.disable_fusion),
    )
