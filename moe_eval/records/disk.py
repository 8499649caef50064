"""The record of a harness run: a frozen dataclass and its JSON on disk, from which every view is made."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from moe_eval.errors import UsageError

SCHEMA = 1
_REDACTED = "[redacted]"
RECORD = "record.json"
RESULTS = "results.json"
_SECRET = re.compile(r"token|secret|password|passwd|(api|access|private)_?key|credential|env_overrides", re.IGNORECASE)
_IN_URL = re.compile(r"(?<=://)[^/\s\"'@]+(?=@)")  # user and password of an address
_NOT_SECRET = re.compile(r"toks?$|tokens|_token_id$|add_bos_token|tokenizer", re.IGNORECASE)


@dataclass(frozen=True)
class DatasetFacts:
    """What a task evaluated.

    Attributes:
        task, version: of the harness.
        source: `hub:PATH:CONFIGURATION`, or `local:TASK` for a task that reads files itself.
        split: of the data set.
        documents: how many were evaluated.
        digest: 16 hexadecimal digits of SHA-256 over the hashes of these documents, in order.
    """

    task: str
    version: str
    source: str
    split: str
    documents: int
    digest: str


@dataclass(frozen=True)
class HarnessRecord:
    """One `simple_evaluate` of our model, with all its labels.

    Attributes:
        run_id: 32 hexadecimal digits; also a tag in MLflow.
        status: `running` until the run has ended one way or another.
        error: why it failed.
        started: UTC, ISO 8601. `seconds` is wall-clock time including loading.
        model_args: as given, secrets removed.
        settings: the harness's options that differ from nothing.
        labels: what the model said of itself (engine facts, window, BOS policy, tokens scored).
        machine, versions, git: where and with what it ran.
        metrics: by MLflow key; units are in the names.
        datasets: one for each task.
        notes: sentences a reader of the numbers has to know.
    """

    run_id: str
    status: Literal["running", "finished", "failed", "killed"]
    started: str
    model_args: Mapping[str, Any]
    settings: Mapping[str, Any]
    seconds: float | None = None
    error: str | None = None
    labels: Mapping[str, Any] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    git: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    datasets: tuple[DatasetFacts, ...] = ()
    notes: tuple[str, ...] = ()
    schema: int = SCHEMA

    def write(self, folder: Path) -> None:
        """Write record.json into `folder`, whole or not at all."""
        write_json(folder / RECORD, asdict(self))


def read(folder: Path) -> HarnessRecord:
    """Read the record of a run folder.

    Raises:
        UsageError: there is none, or it is of another schema.
    """
    file = folder / RECORD
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        if raw["schema"] != SCHEMA:
            raise UsageError(f"{file} has schema {raw['schema']}; this moe_eval reads schema {SCHEMA}.")
        return HarnessRecord(
            **{**raw, "datasets": tuple(DatasetFacts(**row) for row in raw["datasets"]), "notes": tuple(raw["notes"])}
        )
    except OSError:
        raise UsageError(f"{folder} holds no {RECORD}; give the folder of a run.") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise UsageError(f"{file} is not a record of a run ({error}).") from None


def write_json(file: Path, content: Any, default: Any = None) -> None:
    """Write JSON beside `file` and move it into place, so that a reader never sees half of it.

    User and password of an address do not get there.
    """
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            text = json.dumps(content, indent=1, ensure_ascii=False, default=default)
            out.write(without_credentials(text) + "\n")
            out.flush()
            os.fsync(out.fileno())
        os.chmod(name, 0o644)
        os.replace(name, file)
    except BaseException:
        os.unlink(name)
        raise


def without_credentials(text: str) -> str:
    """A text whose addresses have lost their user and password."""
    return _IN_URL.sub(_REDACTED, text)


def redact(value: Any) -> Any:
    """A copy without what is named like a secret, at any depth."""
    if isinstance(value, Mapping):
        return {
            key: _REDACTED
            if each is not None
            and not isinstance(each, bool)
            and _SECRET.search(str(key))
            and not _NOT_SECRET.search(str(key))
            else redact(each)
            for key, each in value.items()
        }
    return [redact(each) for each in value] if isinstance(value, (list, tuple)) else value
