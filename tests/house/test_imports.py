"""The arrows between the rooms point down: no circle, and no lower room that imports a higher one, wherever it does."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "moe_eval"
# from low to high; rooms of one line know nothing of each other
STOREYS = (
    ("errors", "frozen"),
    ("exits", "stats", "outside"),
    ("machine",),
    ("checkpoint",),
    ("data",),
    ("records",),
    ("emulation",),
    ("engines",),
    ("traces",),
    ("evaluators",),
    ("imports",),
    ("comparison", "runner", "sharing", "tracking"),
    ("report",),
    ("harness",),
    ("cli",),
    ("interface",),
    ("_startup", "__init__"),
)
HEIGHT = {room: height for height, rooms in enumerate(STOREYS) for room in rooms}


def modules() -> dict[str, Path]:
    names = {}
    for file in PACKAGE.rglob("*.py"):
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return names


MODULES = modules()


def imports(file: Path) -> Iterator[str]:
    """The modules of ours that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "moe_eval":
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_room_imports_a_higher_one_or_a_neighbour(module: str) -> None:
    own = room(module)
    for imported in imports(MODULES[module]):
        target = room(imported)
        if target != own:
            assert HEIGHT[target] < HEIGHT[own], f"{module} imports {imported}"


def test_no_imports_form_a_circle() -> None:
    below = {module: {name for name in imports(file) if name != module} for module, file in MODULES.items()}
    while free := [module for module, names in below.items() if not names & below.keys()]:
        for module in free:
            del below[module]
    assert not below, f"a circle is among {sorted(below)}"


def test_no_test_is_imported_by_another() -> None:
    tests = Path(__file__).resolve().parents[1]
    for file in tests.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
                assert not [name for name in modules if name.startswith("tests.") and ".test_" in name], file
