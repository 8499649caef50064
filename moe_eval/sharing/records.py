"""The records, arrays and traces of a run's folder for others."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from moe_eval.errors import UsageError
from moe_eval.evaluators.quality import Scores
from moe_eval.records import anonymous, by_arm, disk, run_files
from moe_eval.records.anonymous import Identity
from moe_eval.records.by_arm import ArmRecords
from moe_eval.records.kernels import KERNELS_SCHEMA, KernelsRecord
from moe_eval.records.latency import LATENCY_SCHEMA, LatencyRecord
from moe_eval.records.quality import QUALITY_SCHEMA, QualityRecord
from moe_eval.records.run import RUN_SCHEMA
from moe_eval.records.serving import SERVING_SCHEMA, ServingRecord
from moe_eval.records.tasks import TASKS_RECORD_SCHEMA, TasksRecord
from moe_eval.traces import numbered

_SCHEMAS: dict[type[by_arm.Record], int] = {
    LatencyRecord: LATENCY_SCHEMA,
    QualityRecord: QUALITY_SCHEMA,
    KernelsRecord: KERNELS_SCHEMA,
    TasksRecord: TASKS_RECORD_SCHEMA,
    ServingRecord: SERVING_SCHEMA,
}
_TRACE = re.compile(r"(trace_[^/]+?)\.(?:json|sqlite)\.gz")
_CHUNK, _OVERLAP = 1 << 24, 1 << 12  # bytes of a trace that are searched at once, and of the part before


def write(source: Path, target: Path, identity: Identity) -> tuple[Identity, list[str]]:
    """Write what others may see of a run's folder into an empty one.

    Records have what was read of a trace, so a trace that has been damaged since is left out.

    Args:
        identity: of this machine.

    Returns:
        The identity with the users and GPUs that the records name, and a sentence on every trace that is left out.

    Raises:
        UsageError: a record or array is damaged.
    """
    runs = run_files.read_run(source)
    matches = [match for file in sorted(source.glob("*.json")) if (match := by_arm.FILE.fullmatch(file.name))]
    records = [by_arm.read_file(source / match[0]) for match in matches]
    identity = anonymous.of_records([*runs, *records], identity)
    for run in runs:
        file = target / run_files.FILES[run.command]
        disk.write_record(file, anonymous.anonymous(replace(run, schema=RUN_SCHEMA), identity))
    for match, record in zip(matches, records, strict=True):
        evaluator, arm, place, shape = match.groups()
        name = anonymous.text_of(arm, identity)
        copy = anonymous.anonymous(replace(record, schema=_SCHEMAS[type(record)]), identity)
        disk.write_record(target / f"{evaluator}_{name}_{place}{f'_{shape}' if shape else ''}.json", copy)
        arrays = ArmRecords(arm, "", folder=source).arrays if evaluator == "ppl" else None
        if arrays:
            Scores.load(arrays).save(target / f"ppl_{name}_{place}.npz")
    unreadable = [
        sentence
        for folder in sorted(source.glob("*arms/*/"))
        for sentence in _copy_traces(folder, target / "traces" / anonymous.text_of(folder.name, identity))
    ]
    return identity, unreadable


def _copy_traces(source: Path, target: Path) -> Iterator[str]:
    """Traces, of which the whitelist keeps what a breakdown needs. Yields a sentence on every one without a copy."""
    for trace in sorted(source.glob("trace_*.gz")):
        if match := _TRACE.fullmatch(trace.name):
            target.mkdir(parents=True, exist_ok=True)
            try:
                numbered.write(trace, target, match[1])
            except UsageError:
                yield f"{trace} is not readable and not exported. Record it again, or move it away."


def check(folder: Path, identity: Identity) -> None:
    """Search every text of a folder for what tells of this machine and its users.

    Raises:
        UsageError: with the first file in which there is something.
    """
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        for text in _texts(file):
            place = identity.find(text)
            if place:
                raise UsageError(
                    f"{file.relative_to(folder)} would hold {place}, so nothing was written. Take it out of the run's "
                    "folder."
                )


def _texts(file: Path) -> Iterator[str]:
    """The texts of a file, in parts that overlap. Pictures and arrays have none."""
    yield file.name
    if file.suffix in (".png", ".npz"):
        return
    with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as content:
        before = b""
        while chunk := content.read(_CHUNK):
            yield (before + chunk).decode("utf-8", "replace")
            before = chunk[-_OVERLAP:]
