"""The files of a report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from moe_eval.report import write
from tests.doubles import compared_arms


def test_a_report_is_a_page_a_text_and_a_picture_where_there_is_something_to_see(tmp_path: Path) -> None:
    comparison = compared_arms.comparison()
    pair = replace(comparison.pairs[0], shapes=tuple(replace(s, kernels=None) for s in comparison.pairs[0].shapes[:1]))
    timed, unseen = (replace(comparison, pairs=pairs) for pairs in ((pair,), comparison.pairs[2:]))
    write.write(timed, tmp_path, "perf_report.html", "perf_report.md", None)
    files = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert files.keys() == {"perf_report.html", "perf_report.md", "perf_report.png"}
    assert files["perf_report.html"].startswith(b"<!DOCTYPE html>")
    assert files["perf_report.md"].startswith(b"## fp8, nvfp4")
    write.write(unseen, tmp_path, "perf_report.html", "perf_report.md", None)
    assert {file.name for file in tmp_path.iterdir()} == {"perf_report.html", "perf_report.md"}
