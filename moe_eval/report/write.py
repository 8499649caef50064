"""Writes the report of a comparison: as HTML, as Markdown and as a picture."""

from __future__ import annotations

from pathlib import Path

from moe_eval.machine import collector
from moe_eval.records import anonymous, disk
from moe_eval.records.comparison import ComparisonRecord
from moe_eval.records.run import RunRecord
from moe_eval.report import markdown, page
from moe_eval.report import picture as pictures


@collector.paused()
def write(comparison: ComparisonRecord, folder: Path, page_name: str, text_name: str, run: RunRecord | None) -> None:
    """Write every file of a report whole or not at all. None of them tells of a machine and its users.

    Args:
        page_name, text_name: of the files, such as report.html and report.md. The picture is named like the page, and
            is there where there is something to see.
        run: how it was measured, where one run says so.
    """
    identity = anonymous.of_publication([comparison, *([] if run is None else [run])])
    comparison, run = anonymous.anonymous(comparison, identity), run and anonymous.anonymous(run, identity)
    disk.write_text(folder / page_name, page.render(comparison, run))
    disk.write_text(folder / text_name, markdown.render(comparison, run))
    picture = (folder / page_name).with_suffix(".png")
    if not pictures.write(comparison, picture):
        picture.unlink(missing_ok=True)
