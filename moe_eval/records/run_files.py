"""The records of the runs that a folder holds."""

from __future__ import annotations

from pathlib import Path

from moe_eval.errors import UsageError
from moe_eval.records import disk, schema_1
from moe_eval.records.run import RUN_FILE, RUN_SCHEMA, RunRecord

FILES = {"run": RUN_FILE, "perf": f"perf_{RUN_FILE}", "ppl": f"ppl_{RUN_FILE}"}


def read_run(folder: Path) -> list[RunRecord]:
    """Every run whose record lies in the folder, of schema 1 or 2.

    Raises:
        UsageError: a record is damaged or of another schema.
    """
    files = ((command, folder / name) for command, name in FILES.items())
    return [_read(file, f"moe-eval {command}") for command, file in files if file.is_file()]


def _read(file: Path, maker: str) -> RunRecord:
    content = disk.read_object(file, maker)
    schema = content.get("schema", schema_1.SCHEMA)
    if schema == schema_1.SCHEMA:
        return disk.convert(schema_1.run(content), RunRecord, file, maker)
    if schema != RUN_SCHEMA:
        raise UsageError(f"{file} has schema {schema}. This moe_eval reads schema {schema_1.SCHEMA} and {RUN_SCHEMA}.")
    return disk.convert(content, RunRecord, file, maker)
