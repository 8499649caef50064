"""Counts what makes the house hard to read, and fails where it is above its limit: `python tests/house/counts.py`.

Limits come from projects that are easy to read (zeus, guidellm): their names say what they hold, and their records have
types.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "moe_eval"
# words that name nothing when a variable or a parameter is called so
UNINFORMATIVE = frozenset(
    """
    found each told asked one two what how other named seen kept made given left ours theirs words wanted most least
    more own read known shown said then now there
    """.split()  # noqa: SIM905
)


@dataclass(frozen=True)
class Count:
    """A figure of the package, and the most that it may be."""

    name: str
    value: float
    limit: float
    places: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        return self.value <= self.limit


def bound_names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Names that are assigned, looped over or taken as a parameter, with their line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno


def counts(package: Path = PACKAGE) -> list[Count]:
    """The figures of a package's files."""
    lines = opaque = bound = 0
    places: list[str] = []
    for file in sorted(package.rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        lines += text.count("\n")
        opaque += len(re.findall(r"\[str, Any\]", text))
        for name, line in bound_names(ast.parse(text)):
            bound += 1
            if name in UNINFORMATIVE:
                places.append(f"{file.relative_to(package.parent)}:{line} {name}")
    return [
        Count("names that say nothing, in per cent", 100 * len(places) / max(bound, 1), 0.5, tuple(places)),
        Count("[str, Any] per 1,000 lines", 1000 * opaque / max(lines, 1), 3.0),
        Count("modules in the package root", len(list(package.glob("*.py"))), 7),
    ]


def main() -> int:
    """Print every count; 1 where one is above its limit."""
    figures = counts()
    for count in figures:
        print(f"{count.name}: {count.value:.2f} (at most {count.limit:g})")
        if not count.holds:
            print("\n".join(f"  {place}" for place in count.places))
    return 0 if all(count.holds for count in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
