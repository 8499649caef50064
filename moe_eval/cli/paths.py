"""Paths of a command: neighbours of what is not there, and folders of records."""

from __future__ import annotations

from pathlib import Path

from moe_eval.errors import UsageError, nearest


def meant(path: Path) -> str:
    """The sentence " Did you mean ...?" with the neighbour of a path that is not there. Empty where none is near."""
    try:
        name = None if path.exists() else nearest(path.name, [neighbour.name for neighbour in path.parent.iterdir()])
    except OSError:
        return ""
    return "" if name is None else f" Did you mean {path.with_name(name)}?"


def make_folder(folder: Path) -> None:
    """Make the folder of the records, before anything is measured that could not be written there.

    Raises:
        UsageError: why it cannot be one.
    """
    import tempfile

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"--output_dir {folder} cannot be written to ({error.strerror}). Give another one.") from None
