"""`moe-eval compare`: recorded arms side by side, with a verdict."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from moe_eval import comparable, gate, results
from moe_eval.cli import common
from moe_eval.errors import UsageError
from moe_eval.exits import Ended
from moe_eval.report import write
from moe_eval.results import ArmResults
from moe_eval.runner.folder import RUN
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
    parser.add_argument("--output_dir", type=Path, default=Path("."), help="of the comparison and the report")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    conditions = gate.parse(args.gate) if args.gate else ()
    with tempfile.TemporaryDirectory() as scratch:
        arms = _gathered(args.sources, Path(scratch))
        if len(arms) < 2:
            raise UsageError(f"There is one arm alone ({arms[0].name}); give sources of two or more.")
        common.make_folder(args.output_dir)
        found = write.conclude(arms, args.output_dir, _facts(args.sources), args.across)
    print(write.told(found))
    print(f"Report: {args.output_dir / write.PAGE}")
    if all(pair["verdict"] == "not comparable" for pair in found["pairs"]):
        raise Ended(2)
    settle(found, conditions)


def settle(found: Mapping[str, Any], conditions: Sequence[gate.Condition]) -> None:
    """Print what a gate makes of a comparison, and end as it says."""
    if conditions:
        code, lines = gate.check(found, conditions)
        print("\n".join(lines))
        if code:
            raise Ended(code)


def _gathered(sources: Sequence[str], scratch: Path) -> list[ArmResults]:
    """All arms of all sources, the first source's reference first; one whose name is taken is named by its source."""
    found: list[ArmResults] = []
    for source in sources:
        folder = Path(source)
        # the package's own folder has the name of the default experiment
        here = folder.is_dir() and (len(folder.parts) > 1 or any(folder.glob("*.json")))
        arms = results.read(folder if here else fetch.fetch(source, scratch))
        taken = {arm.name for arm in found}
        found += [replace(arm, name=f"{arm.name}@{Path(source).name}") if arm.name in taken else arm for arm in arms]
    names = [arm.name for arm in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"{', '.join(twice)} comes twice; give each source once, or folders with names of their own.")
    return found


def _facts(sources: Sequence[str]) -> dict[str, Any]:
    """How the first source was measured, where it says."""
    file = Path(sources[0]) / RUN
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found
