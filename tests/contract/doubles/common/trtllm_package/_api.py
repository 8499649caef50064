"""Finds what the doubles share by this file's own path."""

import importlib
import sys
from pathlib import Path

from . import DOUBLE  # type: ignore[attr-defined]  # the version's own

_COMMON = str(Path(__file__).resolve().parents[1])
if _COMMON not in sys.path:
    sys.path.append(_COMMON)

API = importlib.import_module("trtllm_double.api").build(DOUBLE)
