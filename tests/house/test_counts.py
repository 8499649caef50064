"""The counter of make check counts what it says."""

from __future__ import annotations

from pathlib import Path

from tests.house import counts


def test_names_types_and_modules_of_the_root_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        "def f(found: dict[str, Any], shape: int) -> None:\n    for each in found:\n        x = each\n"
    )
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "b.py").write_text("y = 1\n")
    names, opaque, modules = counts.counts(tmp_path)
    assert names.value == 100 * 2 / 5
    assert [place.split(":")[1] for place in names.places] == ["1 found", "2 each"]
    assert opaque.value == 1000 / 4
    assert modules.value == 1
    assert not names.holds
    assert modules.holds
