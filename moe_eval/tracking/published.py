"""Copies of a run's files as MLflow gets them: nothing in them tells of a machine and who works there."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import msgspec

from moe_eval.records import anonymous
from moe_eval.records.anonymous import Identity
from moe_eval.traces import numbered

# samples of our own tasks name GPUs; those of others are documents, which stay as they are
_MEASURED = re.compile(r"samples_moe_(latency|kernels)\w*\.jsonl")
_TRACE = re.compile(r"(.*)\.(?:json|sqlite)\.gz")


def copy(file: Path, folder: Path, identity: Identity) -> Path:
    """Write a file's copy into a folder, under its name.

    Raises:
        UsageError: a trace cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target, trace = folder / file.name, _TRACE.fullmatch(file.name)
    if file.suffix == ".json":
        document = anonymous.content(msgspec.json.decode(file.read_bytes()), identity)
        target.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=1))
    elif _MEASURED.fullmatch(file.name):
        lines = (anonymous.content(msgspec.json.decode(line), identity) for line in file.read_bytes().splitlines())
        target.write_bytes(msgspec.json.Encoder().encode_lines(lines))
    elif file.suffix in (".html", ".md", ".yaml"):
        target.write_text(anonymous.without_names(file.read_text(encoding="utf-8"), identity), encoding="utf-8")
    elif trace:
        numbered.write(file, folder, trace[1])
    else:
        shutil.copyfile(file, target)
    return target
