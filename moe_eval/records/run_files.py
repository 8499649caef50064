"""The records of the runs that a folder holds."""

from __future__ import annotations

from pathlib import Path

from moe_eval.outside import files
from moe_eval.records import disk, schema_1
from moe_eval.records.run import RUN_FILE, RUN_SCHEMA, RunRecord

FILES = {"run": RUN_FILE, "perf": f"perf_{RUN_FILE}", "ppl": f"ppl_{RUN_FILE}"}


def read_run(folder: Path) -> list[RunRecord]:
    """Every run whose record lies in the folder, of schema 1 or 2.

    Raises:
        UsageError: a record is damaged or of another schema.
    """
    schemas = (schema_1.SCHEMA, RUN_SCHEMA)
    return [
        disk.read_record(file, RunRecord, schemas=schemas, maker=f"moe-eval {command}", upgrade=schema_1.run)
        for command, name in FILES.items()
        if files.is_there(file := folder / name)
    ]


def prefix(command: str) -> str:
    """How the files of a command's run begin."""
    return "" if command == "run" else f"{command}_"
