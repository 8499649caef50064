"""`moe-eval export`: a run as one file for others, or as a table."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from moe_eval.cli.gathered import gathered
from moe_eval.cli.options.exchange import ExportOptions
from moe_eval.cli.output import Conclusion
from moe_eval.cli.sources import folders
from moe_eval.errors import UsageError
from moe_eval.outside import words
from moe_eval.records import anonymous, by_arm, disk
from moe_eval.records.comparison import COMPARISON_FILE
from moe_eval.records.verdicts import Rules
from moe_eval.report import frame, write
from moe_eval.sharing import archive, records

_FORMATS = ("zip", "csv", "parquet")


def run(options: ExportOptions) -> Conclusion:
    """Run the subcommand.

    Raises:
        UsageError: the run cannot be read, the file cannot be written, or something would tell of this machine.
    """
    target = Path(options.target)
    kind = options.to or target.suffix.removeprefix(".")
    if kind not in _FORMATS:
        raise UsageError(f"{target} does not end with .zip, .csv or .parquet. Give such a name, or --to.")
    if target.is_dir() or not target.parent.is_dir():
        raise UsageError(f"{target} is no place for a file. Give a name in a folder that exists.")
    unreadable: list[str] = []
    if kind == "zip":
        unreadable = _share(options.source, target)
    else:
        _tabulate(options.source, target, kind)
    size = target.stat().st_size
    lines = [words.one_line(line) for line in (f"{target}: {size:,} bytes.", *unreadable)]
    print("\n".join(lines))
    return Conclusion({"file": target, "bytes": size, **({"unreadable": unreadable} if unreadable else {})}, lines)


def _share(source: str, target: Path) -> list[str]:
    """Write the archive. Returns a sentence on every trace that it lacks."""
    with tempfile.TemporaryDirectory(prefix="moe-eval-") as scratch:
        shared = Path(scratch) / "shared"
        shared.mkdir()
        (_, folder), *further = folders(source, Path(scratch))
        if further:
            raise UsageError(f"{source} holds {len(further) + 1} runs. Give the folder of one of them.")
        with gathered([str(folder)]) as gathering:
            comparison, run_record = gathering.compare(rules=_rules(folder)), gathering.first_run
        identity, unreadable = records.write(folder, shared, anonymous.here())
        comparison = anonymous.anonymous(comparison, identity)
        disk.write_record(shared / COMPARISON_FILE, comparison)
        run_record = run_record and anonymous.anonymous(run_record, identity)
        write.write(comparison, shared, "report.html", "report.md", run_record)
        records.check(shared, identity)
        archive.pack(shared, target)
    return unreadable


def _rules(folder: Path) -> Rules | None:
    """By which the run's own comparison was made."""
    comparisons = (by_arm.read_comparison(folder / name) for name in by_arm.COMPARISON_FILES)
    return next((comparison.rules for comparison in comparisons if comparison), None)


def _tabulate(source: str, target: Path, kind: str) -> None:
    with gathered([source]) as gathering:
        comparison = gathering.compare() if len(gathering.arms) > 1 else None
        table = frame.dataframe(gathering.arms, comparison)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    part = Path(name)
    try:
        if kind == "csv":
            table.to_csv(part, index=False)
        else:
            table.to_parquet(part, index=False)
        part.chmod(0o644)
        part.replace(target)
    except BaseException:
        part.unlink()
        raise
