"""Gathers recorded arms from folders and from MLflow, and compares them."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from moe_eval.cli.sources import folders as named_folders
from moe_eval.comparison import pairs
from moe_eval.errors import UsageError
from moe_eval.frozen import frozen
from moe_eval.imports import harness_samples
from moe_eval.records import by_arm, run_files
from moe_eval.records.by_arm import ArmRecords
from moe_eval.records.comparison import ComparisonRecord
from moe_eval.records.labels import Status
from moe_eval.records.run import RunRecord
from moe_eval.records.verdicts import Rules
from moe_eval.tracking import patience


@frozen
class Gathered:
    """Arms of several sources.

    Attributes:
        arms: the first source's reference first. One whose name is taken is named by its source.
        runs: all that the sources hold a record of.
        first_run: of the first source. None where it holds none.
    """

    arms: Sequence[ArmRecords]
    runs: Sequence[RunRecord]
    first_run: RunRecord | None

    def compare(self, across: Collection[str] = (), rules: Rules | None = None) -> ComparisonRecord:
        """The arms against the first of them. `across` and `rules`: see comparison.pairs."""
        return pairs.compare(self.arms, runs=self.runs, across=across, rules=rules)


@contextmanager
def gathered(sources: Sequence[str]) -> Iterator[Gathered]:
    """The arms of folders and archives, of folders in these, of MLflow's runs by id, and of experiments' newest runs.

    What MLflow holds is at hand until the context ends.

    Raises:
        UsageError: a source is none of these, or two of them hold the same measurement.
    """
    patience.begin()
    with tempfile.TemporaryDirectory() as scratch:
        folders = [entry for source in sources for entry in named_folders(source, Path(scratch))]
        runs = [run_files.read_run(folder) for _, folder in folders]
        first_run = next(iter(runs[0]), None) if runs else None
        yield Gathered(_arms(folders), [run for group in runs for run in group], first_run)


def _arms(folders: Sequence[tuple[str, Path]]) -> list[ArmRecords]:
    arms: list[ArmRecords] = []
    earlier_arms: list[tuple[str, ArmRecords]] = []
    for source, folder in folders:
        of_source = _read(folder)
        for arm in of_source:
            first = next((name for name, earlier in earlier_arms if _is_one_measurement(arm, earlier)), None)
            if first is not None:
                raise UsageError(
                    f"{arm.name} comes twice: {first} and {source} hold the same measurement. Give each source once."
                )
        names = {arm.name for arm in arms}
        arms += [replace(arm, name=_name_at(arm, source)) if arm.name in names else arm for arm in of_source]
        earlier_arms += [(source, arm) for arm in of_source]
    names_of_all = [arm.name for arm in arms]
    doubled = sorted({name for name in names_of_all if names_of_all.count(name) > 1})
    if doubled:
        raise UsageError(f"{', '.join(doubled)} comes twice. Give each source once, or folders of different names.")
    return arms


def _read(folder: Path) -> list[ArmRecords]:
    """The arms of a folder. Results of the harness are one arm, named by its precision or its checkpoint."""
    arms = by_arm.read(folder) if by_arm.holds_records(folder) or not harness_samples.holds(folder) else []
    if harness_samples.holds(folder):
        tasks = harness_samples.read(folder)
        name = tasks.precision or re.split(r"[/\\]|__", tasks.checkpoint.rstrip("/\\"))[-1]
        arms.append(ArmRecords(name, tasks.precision or "not known", folder=folder, tasks=tasks))
    return arms


def _name_at(arm: ArmRecords, source: str) -> str:
    path = Path(source)
    return f"{arm.name}@{path.stem if path.is_file() else path.name or path.resolve().name}"


def _is_one_measurement(arm: ArmRecords, earlier: ArmRecords) -> bool:
    """Whether two sources hold the same run of an arm."""
    if arm.name != earlier.name:
        return False
    both = [
        (record, before)
        for record, before in ((arm.latency, earlier.latency), (arm.quality, earlier.quality))
        if record and before and Status.FINISHED is record.status is before.status
    ]
    is_same_run = any(record.origin.run_id and record.origin.run_id == before.origin.run_id for record, before in both)
    is_same_task = arm.tasks is not None and arm.tasks == earlier.tasks
    is_same_trace = bool(arm.kernels) and arm.kernels == earlier.kernels
    return is_same_run or is_same_task or is_same_trace or any(record == before for record, before in both)
