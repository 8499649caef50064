"""A load under Nsight Systems: one capture a shape, and the reports that are whole when the load has ended."""

from __future__ import annotations

import itertools
import re
import shlex
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from moe_eval.data.workload import Shape
from moe_eval.errors import UsageError
from moe_eval.evaluators import kernels
from moe_eval.evaluators.kernels import CapturedRun
from moe_eval.machine import nsys
from moe_eval.machine.nsys import NsysSettings
from moe_eval.records.kernels import KernelsRecord
from moe_eval.records.labels import Status
from moe_eval.runner.folder import LOG, RunFolder, say
from moe_eval.runner.tasks import Task, TaskResult
from moe_eval.traces.readers import files

HOLDS = "environment variables, command lines and program output of the traced processes, secrets among them"


@dataclass
class Recording:
    """The captures of one load of an arm.

    Attributes:
        captures: that are planned.
        shapes: that are timed.
        patience: seconds that nsys may take for its reports, and for an export.
        runs: the captures so far, by task. `begun`: those that broke off included.
        has_ended: whether the load has ended by itself.
    """

    settings: NsysSettings
    folder: RunFolder
    arm: str
    captures: int
    shapes: Sequence[Shape]
    patience: float
    runs: dict[Task, CapturedRun] = field(default_factory=dict)
    begun: int = 0
    has_ended: bool = True

    def __post_init__(self) -> None:
        self.folder.reports.mkdir(mode=0o700, exist_ok=True)  # for nobody else, as reports hold secrets
        for file in self.folder.reports.glob(f"{self._base}*"):  # of a load that was killed
            file.unlink()

    @property
    def _base(self) -> str:
        return f"{self.arm}_captures"

    @property
    def command(self) -> tuple[str, ...]:
        """What stands before the command of the arm's process."""
        # nsys takes % in a name for a variable, and %% for itself
        report = Path(str(self.folder.reports.resolve() / f"{self._base}.nsys-rep").replace("%", "%%"))
        return nsys.arguments((), report, captures=self.captures, options=self.settings.options)

    def why_not_loaded(self, reason: str) -> str:
        """Why an arm was not loaded that did not say so itself."""
        log = self.folder.of_arm(self.arm) / LOG
        return (
            f"{reason.rstrip('.')}, under Nsight Systems. Read the end of {log}, and mend --nsys_args or give "
            "--profiler torch."
        )

    def results(self) -> Iterator[tuple[Task, TaskResult]]:
        """What became of every capture, once the load has ended."""
        reports = self._reports()
        for number, (task, run) in enumerate(self.runs.items(), 1):
            begun = time.monotonic()
            try:
                if len(reports) > self.begun:  # then nobody knows whose is whose
                    raise UsageError(
                        f"Nsight Systems wrote {len(reports)} reports of {self.begun} captures. Trace one --batch_size "
                        "a run."
                    )
                record = self._record(task, run, reports.get(number))
            except Exception as error:  # a trace may hold anything, and the rest of the run goes on
                problem = str(error) if isinstance(error, UsageError) else f"{type(error).__name__}: {error}"
                yield task, TaskResult(Status.FAILED, f"kernels not run: {problem}")
            else:
                yield task, TaskResult(Status.FINISHED, kernels=record, seconds=round(time.monotonic() - begun, 3))

    def _reports(self) -> dict[int, Path]:
        """Reports by the number of their capture. nsys numbers them where a load may have several."""
        names = re.compile(rf"{re.escape(self._base)}(?:\.(\d+))?\.nsys-rep")
        matches = filter(None, (names.fullmatch(file.name) for file in self.folder.reports.iterdir()))
        return {int(match[1] or 1): self.folder.reports / match[0] for match in matches}

    def _record(self, task: Task, run: CapturedRun, report: Path | None) -> KernelsRecord:
        assert task.shape is not None
        if report is None:
            raise UsageError(self._why_no_report())
        name = f"trace_{task.shape.name}"
        arm_folder = self.folder.of_arm(task.arm)
        if self.settings.keep_report:  # it is never logged
            report = report.replace(arm_folder / f"{name}.nsys-rep")
            say(f"{report} stays here. It holds {HOLDS}. Share {name}.sqlite.gz in its place.")
        else:
            report = report.replace(self.folder.reports / f"{task.arm}_{task.shape.name}.nsys-rep")
            say(f"Nsight Systems wrote {report}. It holds {HOLDS}. Share {name}.sqlite.gz in its place.")
        with tempfile.TemporaryDirectory(dir=arm_folder, prefix=".trace-") as scratch:
            try:
                export = files.to_sqlite(report, Path(scratch), self.patience)
            except UsageError as error:
                command = ["nsys", "export", "--type=sqlite", f"--output={report.with_suffix('.sqlite')}", str(report)]
                raise UsageError(f"{error} The command is: {shlex.join(command)}") from None
            timed_ms = self._timed_ms(task)
            if timed_ms:
                run = replace(run, unprofiled_ms=tuple(timed_ms))
            record = kernels.of_export(export, run, task.shape, arm_folder, name)
        if timed_ms:
            of = f"the timed load: its first token and {task.shape.output_len - 1} times its TPOT"
        else:
            of = "the same load under Nsight Systems, while nothing was recorded"
        return replace(record, notes=(*record.notes, f"The time without a profiler is of {of}."))

    def _why_no_report(self) -> str:
        if not self.has_ended:
            return f"Nsight Systems did not end within {self.patience:g} s and was ended. Give a longer --timeout."
        raw = min(self.folder.reports.glob(f"{self._base}*.qdstrm"), default=None)
        if raw is not None:
            return (
                f"Nsight Systems wrote {raw} and made no report of it. Install what its importer needs (libdw1, "
                "libelf1), or give --profiler torch."
            )
        log = self.folder.of_arm(self.arm) / LOG
        fix = f"Read the end of {log}, or give --profiler torch."
        return f"Nsight Systems wrote no report of it. {nsys.EMPTY_CAPTURE} {fix}"

    def _timed_ms(self, task: Task) -> list[float]:
        """What the traced shape takes by the iterations of the first timed load."""
        assert task.shape is not None
        traced = task.shape
        sizes = (traced.batch_size, traced.input_len)
        shape = next((shape for shape in self.shapes if (shape.batch_size, shape.input_len) == sizes), None)
        if shape is None:
            return []
        turns = (self.folder.result(Task("latency", task.arm, 0, shape, turn)) for turn in itertools.count())
        results = itertools.takewhile(lambda result: result is not None, turns)
        samples = [sample for result in results if result and result.latency for sample in result.latency.samples]
        part = (traced.output_len - 1) / max(1, shape.output_len - 1)
        return [
            1000 * (sample.first["host"] + part * (sample.last["host"] - sample.first["host"])) for sample in samples
        ]
