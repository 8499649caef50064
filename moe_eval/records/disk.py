"""Writes records to disk, whole or not at all and without secrets, and reads them back by the same classes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TypeVar

from moe_eval.errors import UsageError
from moe_eval.outside import documents, files

_REDACTED = "[redacted]"
_SECRET = re.compile(r"token|secret|password|passwd|(api|access|private)_?key|credential|env_overrides", re.IGNORECASE)
_IN_URL = re.compile(r"(?<=://)[^/\s\"'@]+(?=@)")  # user and password of an address
_NOT_SECRET = re.compile(r"toks?$|tokens|_token_id$|add_bos_token|tokenizer", re.IGNORECASE)

Record = TypeVar("Record")


def write_record(file: Path, record: object) -> None:
    """Write a frozen dataclass as JSON. A number that is none (NaN, infinity) is written as null."""
    import msgspec

    write_text(file, msgspec.json.format(documents.encoded(record), indent=1).decode())


def read_record(
    file: Path,
    kind: type[Record],
    *,
    schemas: Collection[int],
    maker: str,
    upgrade: Callable[[Mapping[str, object]], Mapping[str, object]] | None = None,
) -> Record:
    """Read a record by its class.

    Args:
        schemas: of `kind`, that this reads.
        maker: the command that makes such a record, for messages.
        upgrade: brings schema 1 into the present form. Then a record that names no schema is of schema 1.

    Raises:
        UsageError: the file cannot be read, is damaged (with the path of what does not fit), or has another schema.
    """
    content: Mapping[str, object] = read_object(file, maker)
    schema = content.get("schema", 1 if upgrade else None)
    if schema not in schemas:
        raise UsageError(f"{file} has schema {schema}. This moe_eval reads schema {' and '.join(map(str, schemas))}.")
    return convert(upgrade(content) if upgrade and schema == 1 else content, kind, file, maker)


def read_object(file: Path, maker: str) -> dict[str, object]:
    """A record as it stands.

    Raises:
        UsageError: the file cannot be read, or holds none.
    """
    again = f"Run {maker} again."
    try:
        return documents.parse_object(files.read_text(file, again), documents.FIGURE)
    except documents.Damaged as error:
        raise UsageError(f"{file} is damaged ({error}). {again}") from None
    except documents.Unfit as error:
        reason = f" ({error})" if str(error) else ""
        raise UsageError(f"{file} is not a record of {maker}{reason}. Take it out of the folder.") from None


def convert(content: Mapping[str, object], kind: type[Record], file: Path, maker: str) -> Record:
    """A JSON object as a record.

    Raises:
        UsageError: it does not fit, with the path of the first value that does not.
    """
    import msgspec

    try:
        return msgspec.convert(content, kind, str_keys=True)
    except msgspec.ValidationError as error:
        raise UsageError(f"{file} is not a record of {maker} ({error}). Take it out of the folder.") from None


def write_json(file: Path, content: object, default: Callable[[object], object] | None = None) -> None:
    """Write JSON beside `file` and move it into place, so that a reader never sees half of it.

    User and password of an address do not get there.
    """
    write_text(file, json.dumps(content, indent=1, ensure_ascii=False, default=default))


def write_text(file: Path, text: str) -> None:
    """Write a text beside `file` and move it into place. Addresses lose their user and password."""
    import tempfile

    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as out:
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
    return _IN_URL.sub(_REDACTED, text) if "://" in text else text  # a search for the expression takes longer


def redact(values: Mapping[str, object]) -> dict[str, object]:
    """A copy without what is named like a secret, at any depth."""
    return {key: _REDACTED if _is_secret(str(key), value) else _redacted(value) for key, value in values.items()}


def _redacted(value: object) -> object:
    if isinstance(value, Mapping):
        return redact(value)
    return [_redacted(item) for item in value] if isinstance(value, (list, tuple)) else value


def _is_secret(key: str, value: object) -> bool:
    plain = value is None or isinstance(value, bool)
    return not plain and bool(_SECRET.search(key)) and not _NOT_SECRET.search(key)
