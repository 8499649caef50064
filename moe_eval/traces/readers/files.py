"""Reads a trace of any kind, or keeps a copy of it: its content decides which reader it is handed to."""

from __future__ import annotations

from pathlib import Path

from moe_eval.errors import UsageError
from moe_eval.traces import ranges
from moe_eval.traces.kernel_table import Trace
from moe_eval.traces.readers import sources
from moe_eval.traces.readers.sources import TraceKind


def read(path: Path, *, cpu: bool = False) -> Trace:
    """Read a trace of any kind.

    Args:
        cpu: operators of the CPU instead of kernels. Only a trace of torch's profiler has them.

    Raises:
        UsageError: it cannot be read, or holds no such rows.
    """
    kind = sources.kind(path)
    if kind is TraceKind.TORCH_PROFILER:
        from moe_eval.traces.readers import torch_profiler

        return torch_profiler.read(path, cpu=cpu)
    if cpu:
        raise UsageError(f"{path} is of Nsight Systems and has no operators of the CPU. Read its kernels instead.")
    if kind is TraceKind.NSYS_CSV:
        from moe_eval.traces.readers import nsys_stats

        return nsys_stats.read(path)
    from moe_eval.traces.readers import nsys

    if kind is TraceKind.NSYS_SQLITE:
        return nsys.read(path)
    import tempfile

    with tempfile.TemporaryDirectory(prefix="moe-eval-") as folder:
        return nsys.read(_database(path, kind, Path(folder)))


def keep(source: Path, folder: Path, name: str, *, cpu: bool = False) -> Path:
    """Write a trace again as FOLDER/NAME.json.gz or NAME.sqlite.gz, without facts about the machine or the user.

    All that a breakdown needs stays. A file of that name is replaced, and the source is never changed.

    Args:
        cpu: the rows that count are operators of the CPU.

    Raises:
        UsageError: the source cannot be read, or is a summary, which needs no copy.
    """
    kind = sources.kind(source)
    if kind is TraceKind.TORCH_PROFILER:
        from moe_eval.traces.readers import torch_profiler

        trace = folder / f"{name}.json.gz"
        torch_profiler.scrub(source, trace, ranges.is_known, cpu=cpu)
        return trace
    if kind is TraceKind.NSYS_CSV:
        raise UsageError(f"{source} is a summary. Keep the export that it was made of.")
    import gzip
    import shutil
    import tempfile

    from moe_eval.traces.readers import scrub

    trace = folder / f"{name}.sqlite.gz"
    with tempfile.TemporaryDirectory(dir=folder, prefix=".trace-") as scratch:
        copy, packed = Path(scratch) / "copy", Path(scratch) / "packed"
        scrub.copy(_database(source, kind, Path(scratch)), copy, ranges.is_known)
        # neither a name nor a time in its header
        with copy.open("rb") as plain, packed.open("wb") as out, gzip.GzipFile("", "wb", 6, out, mtime=0) as target:
            shutil.copyfileobj(plain, target)
        packed.replace(trace)
    return trace


def _database(source: Path, kind: TraceKind, scratch: Path) -> Path:
    """The database of an export that may be packed, or in a report."""
    if kind is TraceKind.NSYS_REPORT:
        return to_sqlite(source, scratch)
    return sources.unpack(source, scratch / "unpacked.sqlite") if kind is TraceKind.NSYS_PACKED else source


def to_sqlite(report: Path, folder: Path, patience: float | None = None) -> Path:
    """Turn a report (.nsys-rep, once .qdrep), which only Nsight Systems reads, into a database with the user's `nsys`.

    Args:
        folder: exists, and is not the report's own: a database there would be taken for one of the user's.
        patience: seconds that nsys may take. None for ever.

    Returns:
        FOLDER/NAME.sqlite. Nothing is written beside the report.

    Raises:
        UsageError: there is no report or no nsys, or nsys failed.
    """
    if not report.is_file():
        raise UsageError(f"There is no file {report}. Give the .nsys-rep that nsys profile wrote.")
    if folder.resolve() == report.resolve().parent:
        raise UsageError(f"{report} lies in {folder}, where nothing is to be written. Give another folder.")
    import shutil
    import subprocess

    program = shutil.which("nsys")
    if program is None:
        raise UsageError(
            f"Only nsys can read {report} and it is not on PATH. Run nsys export --type sqlite {report.name} where the "
            "report was made, and give the .sqlite."
        )
    # nsys takes % in a name of its output for a variable
    target = folder.resolve() / f"{report.stem.replace('%', '_')}.sqlite"
    try:
        done = subprocess.run(
            [program, "export", "--type=sqlite", f"--output={target}", "--force-overwrite=true", str(report.resolve())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            check=False,
            timeout=patience,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = (error.strerror or str(error)) if isinstance(error, OSError) else f"no end within {patience:g} s"
        raise UsageError(
            f"nsys export could not read {report} ({problem}). Run nsys export --type sqlite yourself."
        ) from None
    if done.returncode or not target.is_file():
        lines = [line.strip() for line in done.stdout.replace("\r", "\n").splitlines() if line.strip()]
        problem = lines[-1].rstrip(".") if lines else f"exit code {done.returncode}"
        raise UsageError(
            f"nsys export could not read {report} ({problem}). Export it with the version of nsys that made it and "
            "give the .sqlite."
        )
    return target
