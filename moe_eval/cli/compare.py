"""`moe-eval compare`: recorded arms side by side, with a verdict."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from moe_eval.cli import common
from moe_eval.comparison import comparable, gate
from moe_eval.comparison.comparable import measured
from moe_eval.errors import UsageError
from moe_eval.exits import Ended
from moe_eval.records import by_arm
from moe_eval.records.by_arm import ArmResults
from moe_eval.report import write
from moe_eval.runner.folder import RUN, RunFolder
from moe_eval.tracking import fetch


def add(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "compare",
        help="recorded arms side by side, with a verdict",
        description="Compare two or more recorded arms with the first: from output folders of moe-eval run, perf and "
        "ppl, from ids of runs in MLflow, or the newest run of an experiment there. Arms that cannot be compared are "
        "told with the reason.",
    )
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="a folder, an MLflow run id or an experiment")
    parser.add_argument("--across", choices=[comparable.GPUS], action="append", default=[], help="what may differ")
    parser.add_argument("--gate", metavar="CONDITIONS", help='such as "speed>=1.2,ln_ppl<=0.01": exit code 0, 1 or 2')
    parser.add_argument("--output_dir", type=Path, default=Path("."), help="folder of the comparison and the report")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    conditions = gate.parse(args.gate) if args.gate is not None else ()
    _spare_run(args.output_dir, args.sources)
    with tempfile.TemporaryDirectory() as scratch:
        folders = [_folder(source, Path(scratch)) for source in args.sources]
        arms = _gathered(args.sources, folders)
        if len(arms) < 2:
            raise UsageError(f"There is one arm alone ({arms[0].name}); give sources of two or more.")
        common.make_folder(args.output_dir)
        found = write.conclude(arms, args.output_dir, _facts(folders), args.across)
    print(write.told(found))
    print(f"Report: {args.output_dir / write.PAGE}")
    if conditions:
        settle(found, conditions)
    elif all(pair["verdict"] == "not comparable" for pair in found["pairs"]):
        raise Ended(2)


def settle(found: Mapping[str, Any], conditions: Sequence[gate.Condition], failed: int = 0) -> None:
    """Print what a gate makes of a comparison, and end with its code where it does not hold.

    Args:
        failed: steps of the run that failed, without which nothing holds.
    """
    code, lines = gate.check(found, conditions)
    if failed:
        lines.append(f"{failed} {'step' if failed == 1 else 'steps'} of the run failed, so the gate cannot hold")
        code = code or gate.UNDECIDED
    print("\n".join(lines))
    if code:
        raise Ended(code)


def _spare_run(output: Path, sources: Sequence[str]) -> None:
    """Keep a run's own comparison and report: they are made again from all of it or not at all."""
    if (output / RUN).is_file() and [Path(source).resolve() for source in sources] != [output.resolve()]:
        raise UsageError(
            f"--output_dir {output} is the folder of a run, whose own comparison is there; give another --output_dir."
        )


def _folder(source: str, scratch: Path) -> Path:
    """Where the records of a source are; those of MLflow are fetched."""
    folder = Path(source)
    # the package's own folder has the name of the default experiment
    here = folder.is_dir() and (len(folder.parts) > 1 or any(folder.glob("*.json")))
    return folder if here else fetch.fetch(source, scratch)


def _gathered(sources: Sequence[str], folders: Sequence[Path]) -> list[ArmResults]:
    """All arms of all sources, the first source's reference first; one whose name is taken is named by its source."""
    found: list[ArmResults] = []
    read: list[tuple[str, ArmResults]] = []
    for source, folder in zip(sources, folders, strict=True):
        arms = by_arm.read(folder)
        for arm in arms:
            first = next((name for name, other in read if _one_measurement(arm, other)), None)
            if first is not None:
                raise UsageError(
                    f"{arm.name} comes twice: {first} and {source} hold the same measurement; give each source once."
                )
        taken = {arm.name for arm in found}
        found += [replace(arm, name=f"{arm.name}@{Path(source).name}") if arm.name in taken else arm for arm in arms]
        read += [(source, arm) for arm in arms]
    names = [arm.name for arm in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"{', '.join(twice)} comes twice; give each source once, or folders with names of their own.")
    return found


def _one_measurement(one: ArmResults, two: ArmResults) -> bool:
    """Whether two sources hold the same run of an arm."""
    if one.name != two.name:
        return False
    records = [(a, b) for a, b in ((one.perf, two.perf), (one.ppl, two.ppl)) if a and b and measured(a) and measured(b)]
    same_run = any(a.get("run_id") and a["run_id"] == b.get("run_id") for a, b in records)
    return same_run or any(a == b for a, b in records) or (bool(one.kernels) and one.kernels == two.kernels)


def _facts(folders: Sequence[Path]) -> dict[str, Any]:
    """How the first source was measured, where it says, and what any of them was asked for and has not."""
    runs = [RunFolder(folder).run() if (folder / RUN).is_file() else {} for folder in folders]
    skipped = [each for run in runs for each in run.get("skipped", ())]
    return {**runs[0], "skipped": skipped, "evaluators": [name for run in runs for name in run.get("evaluators", ())]}
