"""Finds what the doubles share by this file's own path."""

import importlib
import sys
from pathlib import Path

_COMMON = str(Path(__file__).resolve().parents[2] / "common")
if _COMMON not in sys.path:
    sys.path.append(_COMMON)

API = importlib.import_module("trtllm_double.api").build("1.4.0rc1")
