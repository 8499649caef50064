"""Tables in TOML that the package ships."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read(file: Path) -> dict[str, Any]:
    """The table of a file that this package ships, so that it is as it should be."""
    return tomllib.loads(file.read_text(encoding="utf-8"))
