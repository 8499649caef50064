"""The folders of records that the sources of `moe-eval compare` name."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from moe_eval.cli.paths import meant
from moe_eval.errors import UsageError
from moe_eval.imports import harness_samples
from moe_eval.outside import files
from moe_eval.records import by_arm
from moe_eval.sharing import archive

_LEVELS = ("*", "*/*")  # how deep the runs of a folder lie


def folders(source: str, scratch: Path) -> list[tuple[str, Path]]:
    """The folders of records that a source names, each with a name of its own.

    Args:
        source: a folder of records or of the harness's results, one that has such folders in it, an exported
            archive, an MLflow run's id, or an experiment.
        scratch: where folders for what MLflow and archives hold are made.

    Raises:
        UsageError: it is none of these.
    """
    folder = Path(source)
    if files.is_there(folder) and not folder.is_dir():
        target = Path(tempfile.mkdtemp(dir=scratch))
        archive.unpack(folder, target)
        return [(source, target)]
    if folder.is_dir():
        if within := _within(folder):
            # the harness names its folder by the model, which may be the same in every source
            is_one = len(within) == 1 and harness_samples.holds(within[0])
            return [(source if is_one else str(inner), inner) for inner in within]
        # the package's own folder has the name of the default experiment
        if len(folder.parts) != 1 or any(folder.glob("*.json")):
            return [(str(folder), folder)]
    from moe_eval.tracking import fetch

    try:
        return [(source, fetch.fetch(source, scratch))]
    except UsageError as error:
        raise UsageError(f"{error}{meant(folder)}") from None


def _within(folder: Path) -> list[Path]:
    if _holds_arms(folder):
        return [folder]
    levels: Iterator[list[Path]] = (sorted(filter(_holds_arms, folder.glob(level))) for level in _LEVELS)
    return _single(next(filter(None, levels), []))


def _holds_arms(folder: Path) -> bool:
    return by_arm.holds_records(folder) or harness_samples.holds(folder)


def _single(folders: list[Path]) -> list[Path]:
    """Without what the harness wrote of a run that the plug-in recorded beside it."""
    recorded = {harness_samples.started(folder) for folder in folders if harness_samples.is_of_plugin(folder)} - {None}
    return [
        folder
        for folder in folders
        if by_arm.holds_records(folder)
        or harness_samples.is_of_plugin(folder)
        or harness_samples.started(folder) not in recorded
    ]
