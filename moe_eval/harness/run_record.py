"""The folder and the record of one run of the harness: on disk first, then in MLflow."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_eval import tracking
from moe_eval.checkpoint import precision
from moe_eval.checkpoint.shipped import SHIPPED_NOTE
from moe_eval.errors import TrackingError, UsageError
from moe_eval.harness import KERNELS, LATENCY, context
from moe_eval.harness.settings import ModelSettings
from moe_eval.harness.untyped import Results, Sample
from moe_eval.machine import hardware
from moe_eval.records import disk
from moe_eval.records.harness import RESULTS_FILE, HarnessRecord
from moe_eval.records.labels import Status
from moe_eval.tracking import patience

if TYPE_CHECKING:
    from moe_eval.harness.outcome import Outcome

log = logging.getLogger("lm_eval.moe_eval")  # shown like the harness's own messages

FOLDER = "benchmark_results"
# simple_evaluate's arguments that decide what is evaluated and how
_SETTINGS = """
    tasks num_fewshot limit samples metadata batch_size max_batch_size device use_cache apply_chat_template
    system_instruction fewshot_as_multiturn gen_kwargs predict_only bootstrap_iters random_seed numpy_random_seed
    torch_random_seed fewshot_random_seed
    """.split()  # noqa: SIM905


@dataclass
class RunRecorder:
    """One run's folder and its record."""

    folder: Path
    record: HarnessRecord
    track: bool
    clock: float

    @classmethod
    def open(cls, model: ModelSettings, arguments: Mapping[str, object]) -> RunRecorder:
        """Make the folder and write the settings, so that even a killed run leaves a record."""
        patience.begin()
        run_id = uuid.uuid4().hex
        started = datetime.now(timezone.utc)
        arm = model.of_engine.precision or precision.OF_DTYPE.get(model.of_engine.dtype, "auto")
        folder = _parent(arguments) / f"{started:%Y%m%dT%H%M%S}_{model.engine}_{arm}_{run_id[:8]}"
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise UsageError(
                f"Results cannot be written to {folder} ({error.strerror}). Give another --output_path."
            ) from None
        record = HarnessRecord(
            run_id=run_id,
            status=Status.RUNNING,
            started=started.isoformat(timespec="seconds"),
            model_args=disk.redact(model.arguments),
            settings=disk.redact({name: _plain(arguments.get(name)) for name in _SETTINGS}),
            notes=tuple(_notes(model, arguments)),
        )
        record.write(folder)
        return cls(folder, record, model.track, time.perf_counter())

    def close(self, results: Results, samples: Mapping[str, list[Sample]]) -> None:
        """Write results, samples and the record, and log them."""
        run_outcome = self._write(results, samples)
        self._finish(status=Status.FINISHED, **self._measured(run_outcome))
        end = context.current()
        end.lines += run_outcome.summary()
        if not run_outcome.verified:
            end.contradictions += [note for note in run_outcome.notes if note.startswith("NOT VERIFIED")]
        self._log(end)

    def close_failed(self, error: BaseException, finished: Results) -> None:
        """Record a run that failed or was killed, with the results of the tasks that had finished."""
        killed = isinstance(error, (KeyboardInterrupt, SystemExit))
        reason = ": ".join(filter(None, (type(error).__name__, " ".join(str(error).split()))))[:1000]
        measured: dict[str, Any] = {}
        if finished:
            self.record = replace(self.record, notes=(*self.record.notes, _of_finished(finished)))
            measured = self._measured(self._write(finished, finished["samples"]))
        self._finish(status=Status.KILLED if killed else Status.FAILED, error=reason, **measured)
        self._log(context.current())

    def _write(self, results: Results, samples: Mapping[str, list[Sample]]) -> Outcome:
        """Write results and samples."""
        from lm_eval.utils import handle_non_serializable

        from moe_eval.harness import outcome

        without_samples = {key: value for key, value in results.items() if key != "samples"}
        disk.write_json(self.folder / RESULTS_FILE, disk.redact(without_samples), handle_non_serializable)
        for task, rows in samples.items():
            with (self.folder / f"samples_{task}.jsonl").open("w", encoding="utf-8") as file:
                for row in rows:
                    line = json.dumps(row, default=handle_non_serializable, ensure_ascii=False)
                    file.write((disk.without_credentials(line) if task in (LATENCY, KERNELS) else line) + "\n")
        return outcome.read(results, samples)

    def _measured(self, run_outcome: Outcome) -> dict[str, Any]:
        """The fields of the record that an outcome fills."""
        names = ("labels", "metrics", "datasets")
        notes = self.record.notes + run_outcome.notes
        return {**{name: getattr(run_outcome, name) for name in names}, "notes": notes}

    def _finish(self, **changes: Any) -> None:
        self.record = replace(
            self.record,
            seconds=round(time.perf_counter() - self.clock, 3),
            machine=asdict(hardware.machine()),
            versions=hardware.versions(),
            git=hardware.git_state(),
            **changes,
        )
        self.record.write(self.folder)

    def _log(self, end: context.Ending) -> None:
        end.lines.append(f"Record: {self.folder}")
        if not self.track:
            return
        try:
            logged = tracking.log_run(self.folder)
        except TrackingError as error:
            end.tracking_failed = True
            log.warning("%s", error)
        else:
            end.lines.append(f"MLflow: {logged.describe()}")


def _parent(arguments: Mapping[str, object]) -> Path:
    """Beside the harness's own output if it has one, else a folder of ours in the working directory."""
    output_path = getattr(arguments.get("evaluation_tracker"), "output_path", None)
    if not output_path:
        return Path(FOLDER)
    path = Path(output_path)
    return path.parent if path.suffix == ".json" else path


def _notes(model: ModelSettings, arguments: Mapping[str, object]) -> list[str]:
    notes = [SHIPPED_NOTE] if model.shipped else []
    if arguments.get("limit") is not None or arguments.get("samples"):
        notes.append("part of the documents only: not a result for the whole task")
    return notes


def _of_finished(finished: Results) -> str:
    return f"the run broke off: figures of {', '.join(finished['results'])} alone, which had finished"


def _plain(value: object) -> object:
    """A value of JSON as it is, and anything else, such as a Task object, by its name."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    plain = value is None or isinstance(value, (str, int, float, bool))
    return value if plain else str(getattr(value, "task_name", type(value).__name__))
