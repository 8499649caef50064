"""Hostile text in every text of a comparison: no page, table, terminal or MLflow value is more than text by it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from mlflow import MlflowClient

from moe_eval.outside import words
from moe_eval.report import markdown, page, text
from moe_eval.tracking import store
from tests.doubles import compared_arms
from tests.doubles.report_page import replaced

HOSTILE = "<script>alert(1)</script>|`x`*y*\x1b[31m\x07\u202e\u2066\ud800\x00\r\n# z [a](javascript:b) {{7*7}} [bold]"
_MOVES = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.links += [value or "" for key, value in attrs if key in ("href", "src") or key.startswith("on")]


def test_every_writer_writes_hostile_text_as_text() -> None:
    comparison, run = (
        replaced(record, lambda value: value + HOSTILE) for record in (compared_arms.comparison(), compared_arms.run())
    )
    html = page.render(comparison, run, draw=lambda chart, ident: f"<svg id='{ident}'></svg>")
    tags = _Tags()
    tags.feed(html)
    assert "&lt;script&gt;" in html
    assert not tags.names & {"script", "img", "iframe"}
    assert all(link.startswith("#") for link in tags.links)
    paste = markdown.render(comparison, run)
    assert not re.search(r"(?<!\\)(<script|\]\(|`)", paste)
    assert not re.search(r"(?m)^# z", paste)
    for shown in (html, paste, words.lines(HOSTILE), text.plain(HOSTILE), text.block(HOSTILE)):
        assert _MOVES.search(shown) is None
        shown.encode()


@pytest.mark.parametrize("length", [1, 500])
def test_mlflow_takes_hostile_labels_whatever_their_length(empty_store: Path, tmp_path: Path, length: int) -> None:
    client = MlflowClient(f"sqlite:///{empty_store}")
    experiment = client.create_experiment(f"hostile {length} {tmp_path.name}", str(tmp_path))
    label = HOSTILE * length
    run_id = store.create_run(client, experiment, 0, {"moe_eval.gpu": label}, label)
    params = {"labels": {label: label}, "versions": [label, label]}
    store.log_labels(client, run_id, params=params, metrics={}, datasets=(), ended=0)
    store.set_tags(client, run_id, {"moe_eval.verdict": label})
    store.log_files(client, run_id, tmp_path / "staged", {"flips.json": label})
    run = client.get_run(run_id)
    assert run.data.params["versions"].startswith("<script>alert(1)</script>|`x`*y*")
    assert max(map(len, run.data.params)) <= 250
    assert len(run.data.tags["moe_eval.verdict"]) == min(8000, len(label))
    assert (tmp_path / run_id / "artifacts" / "flips.json").is_file()
