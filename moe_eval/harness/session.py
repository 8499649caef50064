"""Records every `simple_evaluate` of our model: on disk first, then in MLflow."""

from __future__ import annotations

import difflib
import functools
import inspect
import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from moe_eval.checkpoint import precision
from moe_eval.checkpoint.shipped import SHIPPED_NOTE
from moe_eval.errors import TrackingError, UsageError
from moe_eval.exits import terminable
from moe_eval.harness import KERNELS, LATENCY, MODEL, artifacts, elsewhere, offline, settings
from moe_eval.records import disk

log = logging.getLogger("lm_eval.moe_eval")  # shown as the harness shows its own messages

FOLDER = "benchmark_results"
# simple_evaluate's arguments that say what was evaluated and how
_SETTINGS = (
    *("tasks", "num_fewshot", "limit", "samples", "metadata", "batch_size", "max_batch_size", "device", "use_cache"),
    *("apply_chat_template", "system_instruction", "fewshot_as_multiturn", "gen_kwargs", "predict_only"),
    *("bootstrap_iters", "random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"),
)


@dataclass
class _Ended:
    """What there is to say when the command ends."""

    lines: list[str]
    tracking_failed: bool = False
    contradictions: list[str] = field(default_factory=list)


_ended = _Ended([])


def epilogue() -> list[str]:
    """Where the runs of this process are, for the end of a command."""
    return _ended.lines


def tracking_failed() -> bool:
    """Whether a run of this process could not be logged to MLflow."""
    return _ended.tracking_failed


def contradictions() -> list[str]:
    """Sentences on arms of this process whose kernels are not those of their precision."""
    return _ended.contradictions


def recorded(simple_evaluate: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the harness's simple_evaluate. Runs of other models go through untouched."""
    signature = inspect.signature(simple_evaluate)

    @functools.wraps(simple_evaluate)
    def run(*args: Any, **kwargs: Any) -> Any:
        call = signature.bind(*args, **kwargs)
        call.apply_defaults()
        asked = _settings_of(call.arguments)
        if asked is None:
            return elsewhere.run(lambda: simple_evaluate(*args, **kwargs), call.arguments["tasks"])
        if not _keeps_books():
            return simple_evaluate(*args, **kwargs)
        if not isinstance(call.arguments["model"], str):
            call.arguments["model"].scored = {}  # counts are of one run
        limit = call.arguments["limit"]
        if limit is not None and limit <= 0:
            raise UsageError(f"--limit {limit} leaves no document; give a count, or a share between 0 and 1.")
        if isinstance(call.arguments["tasks"], list):
            # a shape that cannot be timed shows before hours of scoring, and nothing is timed after a profiler has run
            places = {LATENCY: 0, KERNELS: 2}
            call.arguments["tasks"] = sorted(
                call.arguments["tasks"], key=lambda each: places.get(each, 1) if isinstance(each, str) else 1
            )
            _check_metadata(call.arguments)
        wants_samples = call.arguments["log_samples"]
        call.arguments["log_samples"] = True
        books = _Books.open(asked, call.arguments)
        try:
            with terminable(), artifacts.kept_in(books.folder):
                results = offline.explained(lambda: simple_evaluate(*call.args, **call.kwargs))
        except BaseException as error:
            books.close_failed(error)
            raise
        if results is None:  # another process has the results
            return None
        samples = results["samples"]
        if not wants_samples:
            del results["samples"]
        books.close(results, samples)
        return results

    return run


def _check_metadata(arguments: Mapping[str, Any]) -> None:
    """Refuse a key that is nearly one of our evaluators', which would leave the default in force without a word."""
    from lm_eval.utils import simple_parse_args_string

    from moe_eval.harness.kernels import MoeKernels
    from moe_eval.harness.latency import MoeLatency

    ours = {name for each in (MoeLatency, MoeKernels) if each.kind in arguments["tasks"] for name in each.defaults}
    given = arguments["model_args"] or {}  # the harness adds them to the metadata
    given = simple_parse_args_string(given) if isinstance(given, str) else given
    for name in arguments["metadata"] or {}:
        close = difflib.get_close_matches(name, ours, 1, 0.8)
        if close and name not in ours and name not in given:
            raise UsageError(f"The metadata names {name}, which no task of ours knows; did you mean {close[0]}?")


def _keeps_books() -> bool:
    """Whether this process is the first of its launcher's: under torchrun or mpirun every one evaluates, one writes."""
    return all(
        os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")
    )


def _settings_of(arguments: Mapping[str, Any]) -> settings.ModelSettings | None:
    """The checked settings of a call for our model, None for any other model."""
    model = arguments["model"]
    if model == MODEL:
        from lm_eval.utils import simple_parse_args_string

        given = arguments["model_args"] or {}
        given = simple_parse_args_string(given) if isinstance(given, str) else given
        defaults = {name: arguments[name] for name in ("batch_size", "max_batch_size", "device")}
        return settings.read({**defaults, **given})
    found = getattr(model, "settings", None)
    return found if isinstance(found, settings.ModelSettings) else None


@dataclass
class _Books:
    """One run's folder and its record."""

    folder: Path
    record: disk.HarnessRecord
    track: bool
    clock: float

    @classmethod
    def open(cls, asked: settings.ModelSettings, arguments: Mapping[str, Any]) -> _Books:
        """Make the folder and write what was asked, so that even a killed run leaves a trace of itself."""
        run_id = uuid.uuid4().hex
        started = datetime.now(timezone.utc)
        arm = asked.of_engine.precision or precision.OF_DTYPE.get(asked.of_engine.dtype, "auto")
        folder = _parent(arguments) / f"{started:%Y%m%dT%H%M%S}_{asked.engine}_{arm}_{run_id[:8]}"
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise UsageError(
                f"Results cannot be written to {folder} ({error.strerror}); give another --output_path."
            ) from None
        record = disk.HarnessRecord(
            run_id=run_id,
            status="running",
            started=started.isoformat(timespec="seconds"),
            model_args=disk.redact(asked.given),
            settings=disk.redact({name: _plain(arguments.get(name)) for name in _SETTINGS}),
            notes=tuple(_notes(asked, arguments)),
        )
        record.write(folder)
        return cls(folder, record, asked.track, time.perf_counter())

    def close(self, results: Mapping[str, Any], samples: Mapping[str, list[dict[str, Any]]]) -> None:
        """Write results, samples and the record; then log them."""
        from lm_eval.utils import handle_non_serializable

        from moe_eval.harness import outcome

        shown = {key: value for key, value in results.items() if key != "samples"}
        disk.write_json(self.folder / disk.RESULTS, disk.redact(shown), handle_non_serializable)
        for task, rows in samples.items():
            with (self.folder / f"samples_{task}.jsonl").open("w", encoding="utf-8") as file:
                for row in rows:
                    line = json.dumps(row, default=handle_non_serializable, ensure_ascii=False)
                    file.write((disk.without_credentials(line) if task in (LATENCY, KERNELS) else line) + "\n")
        found = outcome.read(results, samples)
        self._finish(
            status="finished",
            labels=found.labels,
            metrics=found.metrics,
            datasets=found.datasets,
            notes=self.record.notes + found.notes,
        )
        _ended.lines += found.summary()
        if not found.verified:
            _ended.contradictions += [note for note in found.notes if note.startswith("NOT VERIFIED")]
        self._log()

    def close_failed(self, error: BaseException) -> None:
        """Record a run that did not end well."""
        killed = isinstance(error, (KeyboardInterrupt, SystemExit))
        reason = ": ".join(filter(None, (type(error).__name__, " ".join(str(error).split()))))[:1000]
        self._finish(status="killed" if killed else "failed", error=reason)
        self._log()

    def _finish(self, **changes: Any) -> None:
        from moe_eval.machine import hardware

        self.record = replace(
            self.record,
            seconds=round(time.perf_counter() - self.clock, 3),
            machine=asdict(hardware.machine()),
            versions=hardware.versions(),
            git=hardware.git_state(),
            **changes,
        )
        self.record.write(self.folder)

    def _log(self) -> None:
        _ended.lines.append(f"Record: {self.folder}")
        if not self.track:
            return
        from moe_eval import tracking

        try:
            logged = tracking.log_run(self.folder)
        except TrackingError as error:
            _ended.tracking_failed = True
            log.warning("%s", error)
        else:
            _ended.lines.append(f"MLflow: {logged.describe()}")


def _parent(arguments: Mapping[str, Any]) -> Path:
    """Beside the harness's own output where it has one, else a folder of ours in the working directory."""
    named = getattr(arguments.get("evaluation_tracker"), "output_path", None)
    if not named:
        return Path(FOLDER)
    path = Path(named)
    return path.parent if path.suffix == ".json" else path


def _notes(asked: settings.ModelSettings, arguments: Mapping[str, Any]) -> list[str]:
    notes = [SHIPPED_NOTE] if asked.shipped else []
    if arguments.get("limit") is not None or arguments.get("samples"):
        notes.append("part of the documents only: not a result for the whole task")
    return notes


def _plain(value: Any) -> Any:
    """JSON as it is, anything else (a Task object, say) by its name."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    plain = value is None or isinstance(value, (str, int, float, bool))
    return value if plain else str(getattr(value, "task_name", type(value).__name__))
