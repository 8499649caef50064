"""What the evaluators have written into a folder, joined by arm."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from moe_eval.checkpoint.precision import PRECISIONS
from moe_eval.errors import UsageError
from moe_eval.frozen import frozen
from moe_eval.machine import collector
from moe_eval.records import disk, run_files, schema_1
from moe_eval.records.comparison import COMPARISON_FILE, COMPARISON_SCHEMA, ComparisonRecord, QualityComparison
from moe_eval.records.kernels import KERNELS_SCHEMA, KernelsRecord
from moe_eval.records.labels import Status
from moe_eval.records.latency import LATENCY_SCHEMA, LatencyRecord
from moe_eval.records.quality import QUALITY_SCHEMA, QualityRecord
from moe_eval.records.serving import SERVING_SCHEMA, ServingRecord
from moe_eval.records.task_results import ArmTaskResults
from moe_eval.records.tasks import TASKS_RECORD_SCHEMA, TasksRecord

EARLIER = "earlier"  # the folder for files in whose place others were written
REPEAT_SUFFIX = "-again"  # the end of the name of an arm that is another one, measured a second time
# evaluator, arm, place and shape
_SHAPE = r"b\d+_i\d+_o\d+|[cr][\d.e+-]+_(?:i\d+_o\d+|mixed)"
FILE = re.compile(rf"(perf|ppl|kernels|tasks|serving)_(.+?)_(sm\d+|cpu|imported)(?:_({_SHAPE}))?\.json")
COMPARISON_FILES = (COMPARISON_FILE, f"perf_{COMPARISON_FILE}", f"ppl_{COMPARISON_FILE}")


Record = LatencyRecord | QualityRecord | KernelsRecord | TasksRecord | ServingRecord


class _Form(NamedTuple):
    """How the records of an evaluator are read."""

    kind: type[Record]
    schema: int
    upgrade: Callable[[schema_1.Json, str], dict[str, object]]
    maker: str


_FORMS = {
    "perf": _Form(LatencyRecord, LATENCY_SCHEMA, schema_1.latency, "moe-eval perf"),
    "ppl": _Form(QualityRecord, QUALITY_SCHEMA, schema_1.quality, "moe-eval ppl"),
    "kernels": _Form(KernelsRecord, KERNELS_SCHEMA, schema_1.kernels, "the kernels evaluator"),
    "tasks": _Form(TasksRecord, TASKS_RECORD_SCHEMA, lambda content, _: dict(content), "moe-eval run --tasks"),
    "serving": _Form(ServingRecord, SERVING_SCHEMA, lambda content, _: dict(content), "the serving evaluator"),
}


@frozen
class ArmRecords:
    """Everything that is recorded of one arm.

    Attributes:
        name: unique in a run. `precision`: that was asked for.
        kernels: by the name of the shape, "" where the record names none. Traces that failed are left out.
        folder: where its arrays and traces are. None where they are not at hand.
        compared: the quality against other arms of the same run, by their names, as somebody has computed it before.
            It stands in where arrays are not at hand.
        tasks: results of the harness by document. None where none were logged.
        evaluated: the record that they come from. None where they are the harness's own files.
        serving: the record of its server. None where none was driven.
    """

    name: str
    precision: str
    latency: LatencyRecord | None = None
    quality: QualityRecord | None = None
    kernels: Mapping[str, KernelsRecord] = field(default_factory=dict)
    folder: Path | None = None
    compared: Mapping[str, QualityComparison] = field(default_factory=dict)
    tasks: ArmTaskResults | None = None
    evaluated: TasksRecord | None = None
    serving: ServingRecord | None = None

    @cached_property
    def arrays(self) -> Path | None:
        """The file of the scores of its tokens. None where there is not exactly one."""
        if self.folder is None:
            return None
        name = re.compile(rf"ppl_{re.escape(self.name)}_(sm\d+|cpu)\.npz")
        files = [file for file in self.folder.glob(f"ppl_{glob.escape(self.name)}_*.npz") if name.fullmatch(file.name)]
        of_run = self.folder / "arms" / self.name / "perplexity.npz"
        files += [of_run] if of_run.is_file() else []
        return files[0] if len(files) == 1 else None


class _Entry(NamedTuple):
    """One file and its record."""

    arm: str
    kind: str
    shape: str
    file: Path
    record: Record

    @property
    def before(self) -> schema_1.Json:
        """The content of a record of schema 1. Empty for a later one."""
        return disk.read_object(self.file, _FORMS[self.kind].maker) if self.record.schema == schema_1.SCHEMA else {}


@collector.paused()
def read(folder: Path, run_id: str | None = None) -> list[ArmRecords]:
    """Read the output folder of `moe-eval run`, `moe-eval perf` or `moe-eval ppl`.

    The reference comes first: the first arm of the run that finished, else the first that finished by the order of
    precision.PRECISIONS. That order is the others' as well.

    Args:
        run_id: read the records of this run alone, of which there may be none.

    Raises:
        UsageError: there is no record, one cannot be read or is none, one arm was recorded on two machines, or records
            of one name are of arms that differ.
    """
    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder}. Give the --output_dir of moe-eval run, perf or ppl.")
    entries: dict[tuple[str, str, str], _Entry] = {}
    entries_of: dict[str, list[_Entry]] = {}  # by arm
    for entry in _entries(folder):
        if run_id is not None and entry.record.origin.run_id != run_id:
            continue
        first = entries.setdefault((entry.arm, entry.kind, entry.shape), entry)
        if first is not entry:
            raise UsageError(f"{first.file} and {entry.file.name} are of the same arm. Keep one of them in the folder.")
        entries_of.setdefault(entry.arm, []).append(entry)
        _refuse_stranger(entry, entries_of[entry.arm])
    if not entries and run_id is None:
        raise UsageError(
            f"{folder} holds no record (perf_*.json, ppl_*.json, tasks_*.json, serving_*.json, kernels_*.json). "
            "Give the --output_dir of moe-eval run, perf or ppl."
        )
    arms = in_order(_arm(name, folder, entries.values()) for name in {entry.arm for entry in entries.values()})
    return _with_comparisons(folder, in_order(arms, _reference(folder, arms, entries.values())))


def _refuse_stranger(entry: _Entry, entries: Collection[_Entry]) -> None:
    """Refuse a record that has the name of an arm and is of another one. `entries`: of this name."""
    for first in entries:
        difference = _difference(first.record, entry.record)
        if difference is not None:
            raise UsageError(
                f"{first.file} and {entry.file.name} have one arm's name and are of two arms, which differ in "
                f"{difference}. Move one of them to another folder, or name the arms apart with --arm."
            )


def _difference(first: Record, second: Record) -> str | None:
    """What two records of different runs show their arms to differ in. None where they show nothing."""
    if first.origin.run_id is not None and first.origin.run_id == second.origin.run_id:
        return None
    facts = [None if isinstance(record, KernelsRecord) else record.labels.engine for record in (first, second)]
    settings = [record.origin.arm for record in (first, second)]
    names = {"fingerprint": "fingerprint", "weights": "weights", "precision": "precision", "engine": "name"}
    sides = [{name: getattr(side, fact) for name, fact in names.items()} if side else {} for side in facts]
    if None in settings or None in facts:
        sides = [{} if side is None else {"checkpoint": side.checkpoint, "engine": side.engine} for side in settings]
    for side, planned in zip(sides, settings, strict=True):
        if None not in settings and planned is not None:
            side.update({**planned.options, **planned.environment})
    differing = sorted(name for name in {**sides[0], **sides[1]} if sides[0].get(name) != sides[1].get(name))
    if not all(sides) or not differing:
        return None
    return ", ".join(
        "checkpoint" if name == "fingerprint" else f"{name} ({sides[0].get(name)} and {sides[1].get(name)})"
        for name in differing
    )


def holds_records(folder: Path) -> bool:
    """Whether records of arms lie in a folder, but not those that others took the place of."""
    is_current = folder.name != EARLIER and folder.is_dir()
    return is_current and any(FILE.fullmatch(file.name) for file in folder.glob("*.json"))


def in_order(arms: Iterable[ArmRecords], reference: str | None = None) -> list[ArmRecords]:
    """The reference first, then by the order of precision.PRECISIONS, a repeated arm after itself."""
    ranks = {precision: rank for rank, precision in enumerate(PRECISIONS)}

    def place(arm: ArmRecords) -> tuple[bool, int, str]:
        base = arm.precision.partition("-")[0]  # weight-only kernels stand with the precision that they unpack
        return arm.name != reference, ranks.get(base, len(ranks)), arm.name

    return sorted(arms, key=place)


def _reference(folder: Path, arms: Sequence[ArmRecords], entries: Collection[_Entry]) -> str | None:
    """The name of the arm that the others are compared with. Latency counts more than quality."""
    names = [arm.name for arm in arms]
    for kind in ("perf", "ppl"):
        claimed = [entry.arm for entry in entries if entry.kind == kind and schema_1.is_reference(entry.before)]
        if claimed:
            return min(claimed, key=names.index)
    planned = [name for run in run_files.read_run(folder) for name in run.evaluators]
    ordered = sorted(arms, key=lambda arm: planned.index(arm.name) if arm.name in planned else len(planned))
    timed = [arm.name for arm in ordered if arm.latency and arm.latency.status is Status.FINISHED]
    timed += [arm.name for arm in ordered if arm.serving and arm.serving.status is Status.FINISHED]
    scored = [arm.name for arm in ordered if arm.quality and arm.quality.status is Status.FINISHED]
    scored += [arm.name for arm in ordered if arm.evaluated and arm.evaluated.status is Status.FINISHED]
    return next(iter([*timed, *scored, *(arm.name for arm in ordered)]), None)


def _arm(name: str, folder: Path, entries: Collection[_Entry]) -> ArmRecords:
    latency: LatencyRecord | None = None
    quality: QualityRecord | None = None
    evaluated: TasksRecord | None = None
    serving: ServingRecord | None = None
    kernels: dict[str, KernelsRecord] = {}
    compared: dict[str, QualityComparison] = {}
    for entry in entries:
        if entry.arm != name:
            continue
        if isinstance(entry.record, LatencyRecord):
            latency = entry.record
        elif isinstance(entry.record, TasksRecord):
            evaluated = entry.record
        elif isinstance(entry.record, ServingRecord):
            serving = entry.record
        elif isinstance(entry.record, QualityRecord):
            quality = entry.record
            reference, comparison = schema_1.compared(entry.before) or ("", None)
            if comparison is not None:
                compared = {reference: disk.convert(comparison, QualityComparison, entry.file, _FORMS["ppl"].maker)}
        else:
            kernels[entry.shape] = entry.record
    labels = [record.precision for record in kernels.values() if record.precision]
    planned = [record.precision_planned for record in (latency, serving) if record]
    planned += [record.precision for record in (quality, evaluated) if record] or labels
    precision = planned[0] if planned else name.removesuffix(REPEAT_SUFFIX)
    return ArmRecords(
        name,
        precision,
        latency,
        quality,
        kernels,
        folder,
        compared,
        evaluated.results if evaluated else None,
        evaluated,
        serving,
    )


def _entries(folder: Path) -> Iterator[_Entry]:
    for file in sorted(folder.glob("*.json")):
        match = FILE.fullmatch(file.name)
        if match is None or (match[4] and match[1] != "kernels"):
            continue
        record = read_file(file)
        if not isinstance(record, KernelsRecord):
            yield _Entry(match[2], match[1], "", file, record)
        elif record.status is Status.FINISHED:
            yield _Entry(match[2], match[1], record.shape or match[4] or "", file, record)


def read_file(file: Path) -> Record:
    """Read one record, of schema 1 or 2, that is named as records are.

    Raises:
        UsageError: it is damaged or has another name.
    """
    match = FILE.fullmatch(file.name)
    if match is None:
        raise UsageError(f"{file} is not named like a record. Give the file its name back.")
    form, arm = _FORMS[match[1]], match[2]
    schemas = (schema_1.SCHEMA, form.schema)
    record: Record = disk.read_record(
        file, form.kind, schemas=schemas, maker=form.maker, upgrade=lambda content: form.upgrade(content, arm)
    )
    if record.arm not in (arm, None):
        raise UsageError(f"{file} is the record of {record.arm}. Give the file its name back.")
    return record


def _with_comparisons(folder: Path, arms: Sequence[ArmRecords]) -> list[ArmRecords]:
    """Arms whose arrays are not at hand, with what comparisons beside their records say of their quality."""
    if all(arm.quality is None or arm.compared or arm.arrays for arm in arms):
        return list(arms)
    runs = {arm.name: arm.quality.origin.run_id for arm in arms if arm.quality}
    compared: dict[str, dict[str, QualityComparison]] = {}
    for name in COMPARISON_FILES:
        comparison = read_comparison(folder / name)
        for pair in comparison.pairs if comparison else ():
            quality = pair.quality
            # the reference may be in another folder: it counts if it is of the same run, see comparison.quality
            if quality and quality.run_id and quality.run_id == runs.get(pair.other):
                compared.setdefault(pair.other, {})[pair.reference] = quality
    return [replace(arm, compared={**compared.get(arm.name, {}), **arm.compared}) for arm in arms]


def read_comparison(file: Path) -> ComparisonRecord | None:
    """None where there is none that can be read: it is a view, which can be made again."""
    if not file.is_file():
        return None
    try:
        return disk.read_record(file, ComparisonRecord, schemas=(COMPARISON_SCHEMA,), maker="moe-eval compare")
    except UsageError:
        return None
