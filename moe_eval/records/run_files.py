"""The run records of a folder, whichever command and version of moe_eval wrote them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from moe_eval.errors import UsageError
from moe_eval.records import disk
from moe_eval.records.run import EVALUATORS, RUN_SCHEMA, RunRecord

FILES = {"run": "run.json", "perf": "perf_run.json", "ppl": "ppl_run.json"}


def read_run(folder: Path) -> list[RunRecord]:
    """The run records of `moe-eval run`, `perf` and `ppl`, as far as they are there, in this order.

    Raises:
        UsageError: one of them cannot be read.
    """
    files = ((command, folder / name) for command, name in FILES.items())
    return [read_file(file, command) for command, file in files if file.exists()]


def read_file(file: Path, command: str = "run") -> RunRecord:
    """One run record, of schema 1 or 2.

    Raises:
        UsageError: it cannot be read.
    """
    maker = f"moe-eval {command}"
    content = disk.read_object(file, maker)
    if content.get("schema") == 1:
        return disk.convert(_from_schema_1(content, file, maker), RunRecord, file, maker)
    return disk.read_record(file, RunRecord, schemas=(RUN_SCHEMA,), maker=maker)


def _from_schema_1(content: Mapping[str, object], file: Path, maker: str) -> dict[str, object]:
    """A run record of schema 1 by the names of schema 2: skips were triples, and quality was called perplexity."""
    evaluators, skipped = content.get("evaluators"), content.get("skipped")
    if not isinstance(evaluators, dict) or not isinstance(skipped, list):
        raise UsageError(f"{file} is not a record of {maker} (evaluators or skipped). Take it out of the folder.")
    steps = content.get("steps")
    return {
        **content,
        "command": "run",
        "options": content.get("asked"),
        "evaluators": {arm: [_renamed(name) for name in names] for arm, names in evaluators.items()},
        "skipped": [
            {"arm": triple[0], "evaluator": triple[1] and _renamed(triple[1]), "reason": triple[2]}
            for triple in skipped
            if isinstance(triple, list) and len(triple) == 3
        ],
        "tasks": 0 if steps is None else steps,
        "schema": RUN_SCHEMA,
    }


def _renamed(evaluator: object) -> object:
    return EVALUATORS[0] if evaluator == "perplexity" else evaluator
