"""The folder of a run of `moe-eval run`, `perf` or `ppl`, and what is logged of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import msgspec

from moe_eval.errors import UsageError
from moe_eval.frozen import frozen
from moe_eval.outside import files
from moe_eval.records import anonymous, by_arm, disk, schema_1
from moe_eval.records.anonymous import Identity
from moe_eval.records.comparison import COMPARISON_FILE, COMPARISON_SCHEMA, ComparisonRecord
from moe_eval.records.run import RUN_FILE, RunRecord
from moe_eval.records.run_files import prefix, read_run
from moe_eval.tracking import headlines, published, store
from moe_eval.tracking.arm import Arm
from moe_eval.tracking.title import CPU, Title, short

_FORM = b"5"  # of what is logged: a run of another form is logged anew
_TEXT = "report.md"
# what a parent run shows of its folder; logs stay where they are
_VIEWS = (COMPARISON_FILE, "report.html", _TEXT)
_PICTURE = "report.png"
_CHECKPOINTS = ("model_path", "fp8_model_path", "nvfp4_model_path")


@frozen
class StepTime:
    """When a task ended, by its step file, and the seconds that it took."""

    ended: str | None = None
    seconds: float | None = None


@frozen
class RunFiles:
    """The folder of a run.

    Attributes:
        recorded: the run as it is on disk. `run`: as MLflow gets it.
    """

    folder: Path
    recorded: RunRecord

    @classmethod
    def read(cls, folder: Path, command: str) -> RunFiles:
        """Find the run of a command.

        Raises:
            UsageError: there is none, or a record is damaged.
        """
        run = next((run for run in read_run(folder) if run.command == command), None)
        if run is None:
            raise UsageError(f"{folder} holds no {prefix(command)}{RUN_FILE}. Give the folder of a run.")
        return cls(folder, run)

    @property
    def _arms(self) -> Path:
        return self.folder / f"{prefix(self.recorded.command)}arms"

    @cached_property
    def run(self) -> RunRecord:
        return anonymous.anonymous(self.recorded, self.identity)

    @cached_property
    def identity(self) -> Identity:
        """What the run's records tell of."""
        comparison = () if self._compared is None else (self._compared,)
        return anonymous.of_publication(
            [self.recorded, *comparison, *(record for arm in self._recorded_arms for record in arm.records)]
        )

    @cached_property
    def comparison(self) -> ComparisonRecord | None:
        """None where there is none yet."""
        return self._compared and anonymous.anonymous(self._compared, self.identity)

    @cached_property
    def _compared(self) -> ComparisonRecord | None:
        """It is a view of the records, which can be made again."""
        file = self.folder / f"{prefix(self.recorded.command)}{COMPARISON_FILE}"
        try:
            schemas, maker = (COMPARISON_SCHEMA,), "moe-eval compare"
            return disk.read_record(file, ComparisonRecord, schemas=schemas, maker=maker) if file.is_file() else None
        except UsageError:
            return None

    @cached_property
    def _recorded_arms(self) -> list[Arm]:
        files_of: dict[tuple[str, str], list[Path]] = {}
        for file in sorted(self.folder.glob("*.json")):
            match = by_arm.FILE.fullmatch(file.name)
            if match and match[3] != "imported":  # that is of no run
                files_of.setdefault((match[1], match[2]), []).append(file)
        return [
            Arm.read(name, evaluators, files_of, self._arms, None)
            for name, evaluators in self.recorded.evaluators.items()
        ]

    def arms(self) -> list[Arm]:
        """The arms as their records stand, the reference first, as MLflow gets them.

        Raises:
            UsageError: a record is damaged.
        """
        return [
            replace(
                arm,
                records=[anonymous.anonymous(record, self.identity) for record in arm.records],
                comparison=self.comparison,
            )
            for arm in self._recorded_arms
        ]

    def stage(self, arms: Sequence[Arm], folder: Path) -> list[str]:
        """Write what is logged as files, for others, where `staged` says, by the names that they have in MLflow.

        Records have what was read of a trace, so a trace that has been damaged since keeps no run from being logged.

        Returns:
            Sentences on the traces that are left out.

        Raises:
            UsageError: a file that is no trace cannot be read.
        """
        unreadable: list[str] = []
        for arm in arms:
            place = self.staged(folder, arm)
            place.mkdir()
            for name, file, record in arm.artifacts:
                if record.schema == schema_1.SCHEMA:  # what is read of it is in another form
                    published.copy(file, place / name, self.identity)
                else:
                    published.write(record, place / name)
            for trace in arm.traces:
                try:
                    published.copy(trace, place / trace.name, self.identity)
                except UsageError:
                    (place / trace.name).unlink(missing_ok=True)
                    unreadable.append(f"{trace} is not readable and not logged. Record it again, or move it away.")
        for name, file in self.artifacts().items():
            published.copy(file, self.staged(folder) / name, self.identity)
        return unreadable

    @staticmethod
    def staged(folder: Path, arm: Arm | None = None) -> Path:
        """Where files of an arm, or of the parent, are staged in a folder."""
        return folder / (f"arm {arm.name}" if arm else "parent")

    def artifacts(self) -> dict[str, Path]:
        """What is logged on the parent, by names that are the same for every command."""
        start = prefix(self.recorded.command)
        names = [
            name for name in (RUN_FILE, "rates.json", *_VIEWS, _PICTURE) if (self.folder / f"{start}{name}").is_file()
        ]
        return {
            **{name: self.folder / f"{start}{name}" for name in names},
            **{
                file.name: file
                for kind in ("workload", "requests")
                for file in sorted(self.folder.glob(f"{kind}_*.json"))
            },
        }

    def digest(self, arms: Sequence[Arm], unreadable: Sequence[str]) -> str:
        """Of everything that is logged but when it ended: another digest means that it has to be logged anew.

        Args:
            unreadable: on traces that are not logged. One that has been mended is.
        """
        digest = hashlib.sha256(_FORM + msgspec.json.encode(replace(self.recorded, ended=None), order="sorted"))
        of_all = [file for name, file in self.artifacts().items() if name not in (RUN_FILE, _PICTURE)]
        for file in sorted({*of_all, *(file for arm in arms for file in arm.files)}):
            digest.update(file.name.encode() + b"\0" + hashlib.sha256(files.read_bytes(file, published.FIX)).digest())
        digest.update("".join(unreadable).encode("utf-8", "replace"))
        return digest.hexdigest()[:16]

    def title(self, arms: Sequence[Arm]) -> Title:
        """Of all arms together. Before one is loaded, of what the command was asked for."""
        gpus, options = self.run.machine.gpus, self.run.options
        checkpoint, engine = next(filter(None, map(options.get, _CHECKPOINTS)), None), options.get("engine")
        planned = Title(
            short(checkpoint) if isinstance(checkpoint, str) else None,
            gpus[0].name if gpus else CPU,
            engine if isinstance(engine, str) else None,
        )
        return Title.joint(arm.title for arm in arms).filled(planned)

    def span(self, arm: str) -> tuple[int, int]:
        """When the first task of an arm began and the last one ended, in ms since 1970. The run's where none tells."""
        run = store.milliseconds(self.run.started), store.milliseconds(self.run.ended)
        spans = list(self._spans(arm))
        begins, ends = [begin for begin, _ in spans], [end for _, end in spans]
        return max(run[0], min(begins, default=run[0])), min(run[1], max(ends, default=run[1]))

    def _spans(self, arm: str) -> Iterator[tuple[int, int]]:
        for file in (self._arms / arm).glob("*.json"):
            try:
                step = msgspec.json.decode(file.read_bytes(), type=StepTime)
            except (OSError, msgspec.MsgspecError):
                continue
            if step.seconds is not None:  # else it is of a load
                end = store.milliseconds(step.ended) if step.ended else int(file.stat().st_mtime * 1000)
                yield end - int(1000 * step.seconds), end

    def description(self) -> str:
        """The verdict and its table, as Markdown."""
        file = self.artifacts().get(_TEXT)
        if file is not None:
            text = anonymous.without_names(files.read_text(file, published.FIX), self.identity)
        else:
            text = "\n\n".join(pair.sentence for pair in self.comparison.pairs) if self.comparison else ""
        return store.description(text)

    @property
    def verdicts(self) -> dict[str, str]:
        """Of every pair by its arm. `headline_arm` is whose figures stand on the parent."""
        if self.comparison is None or not self.comparison.pairs:
            return {}
        best = headlines.best(self.comparison)
        verdicts = [f"{pair.other} {pair.verdict.value}" for pair in self.comparison.pairs]
        tags = {"moe_eval.verdict": ", ".join(verdicts), "moe_eval.reference": self.comparison.reference}
        return {**tags, **({} if best is None else {"moe_eval.headline_arm": best.other})}
