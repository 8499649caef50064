"""Forms of public quantised checkpoints are read as docs/reference/checkpoints.md says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from docs.generate import checkpoints_page
from moe_eval.checkpoint.carried import read_carried

FORMS: list[dict[str, Any]] = json.loads((Path(__file__).parent / "public_forms.json").read_text())
PAGE = Path(__file__).resolve().parents[2] / "docs/reference/checkpoints.md"


@pytest.mark.parametrize("form", FORMS, ids=[form["form"] for form in FORMS])
def test_a_public_form_is_read_as_the_page_says(tmp_path: Path, form: dict[str, Any]) -> None:
    for name, content in form["files"].items():
        rest = {"dtype": "bfloat16", "num_hidden_layers": 2} if name == "config.json" else {}
        (tmp_path / name).write_text(json.dumps(rest | content))
    carried = read_carried(tmp_path)
    assert (carried.precision, carried.kv_cache, carried.dtype) == (form["precision"], form["kv_cache"], "bfloat16")
    if form["precision"] is None:
        assert carried.method == form["method"]


def test_the_page_has_every_checkpoint_once() -> None:
    names = [name for form in FORMS for name in form["checkpoints"]]
    assert len(names) == len(set(names)) >= 60
    assert PAGE.read_text() == checkpoints_page()
