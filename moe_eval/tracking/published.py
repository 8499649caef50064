"""Copies of a run's files as MLflow gets them: nothing in them tells of a machine and who works there."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import msgspec

from moe_eval.errors import UsageError
from moe_eval.outside import documents, files
from moe_eval.records import anonymous
from moe_eval.records.anonymous import Identity

# samples of our own tasks name GPUs; those of others are documents, which stay as they are
_MEASURED = re.compile(r"samples_moe_(latency|kernels)\w*\.jsonl")
FIX = "Run the command that wrote it again, or move it away."
_TRACE = re.compile(r"(.*)\.(?:json|sqlite)\.gz")


def write(content: object, target: Path) -> None:
    """Write what tells of nobody as JSON."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=1))


def copy(file: Path, target: Path, identity: Identity) -> None:
    """Write a file's copy. That of a trace keeps its name.

    Raises:
        UsageError: it cannot be read.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    trace = _TRACE.fullmatch(file.name)
    if file.suffix == ".json":
        write(anonymous.content(documents.read_object(file, FIX), identity), target)
    elif _MEASURED.fullmatch(file.name):
        try:
            lines = [documents.parse_object(line) for line in files.read_text(file, FIX).split("\n") if line]
        except (documents.Damaged, documents.Unfit) as problem:
            raise UsageError(f"{file} is damaged ({problem}). {FIX}") from None
        target.write_bytes(msgspec.json.Encoder().encode_lines(anonymous.content(line, identity) for line in lines))
    elif file.suffix in (".html", ".md", ".yaml"):
        target.write_text(anonymous.without_names(files.read_text(file, FIX), identity), encoding="utf-8")
    elif trace:
        from moe_eval.traces import numbered

        numbered.write(file, target.parent, trace[1])
    else:
        with files.opened(file, FIX) as content, target.open("wb") as out:
            shutil.copyfileobj(content, out)
