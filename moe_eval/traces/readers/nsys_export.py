"""Turns a report of Nsight Systems into the database that can be read, with the user's own `nsys`.

A report (.nsys-rep, once .qdrep) is in a format of its own that only Nsight Systems reads.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from moe_eval.errors import UsageError


def to_sqlite(report: Path, folder: Path) -> Path:
    """Run `nsys export` and return the database, FOLDER/NAME.sqlite. Nothing is written beside the report.

    Args:
        report: as `nsys profile` wrote it.
        folder: exists, and is not the report's own: a database there would be taken for one of the user's.

    Raises:
        UsageError: there is no report or no nsys, or nsys failed.
    """
    if not report.is_file():
        raise UsageError(f"There is no file {report}. Give the .nsys-rep that nsys profile wrote.")
    if folder.resolve() == report.resolve().parent:
        raise UsageError(f"{report} lies in {folder}, where nothing is to be written. Give another folder.")
    nsys = shutil.which("nsys")
    if nsys is None:
        raise UsageError(
            f"Only nsys can read {report} and it is not on PATH. Run nsys export --type sqlite {report.name} where the "
            "report was made, and give the .sqlite."
        )
    # nsys takes % in a name of its output for a variable
    target = folder.resolve() / f"{report.stem.replace('%', '_')}.sqlite"
    done = subprocess.run(
        [nsys, "export", "--type=sqlite", f"--output={target}", "--force-overwrite=true", str(report.resolve())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if done.returncode or not target.is_file():
        lines = [line.strip() for line in done.stdout.replace("\r", "\n").splitlines() if line.strip()]
        problem = lines[-1].rstrip(".") if lines else f"exit code {done.returncode}"
        raise UsageError(
            f"nsys export could not read {report} ({problem}). Export it with the version of nsys that made it and "
            "give the .sqlite."
        )
    return target
