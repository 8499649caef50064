"""A trace for others has no process ids, and its breakdown is that of the trace itself."""

from __future__ import annotations

import gzip
import json
import sqlite3
from pathlib import Path

from moe_eval.evaluators import kernels_record
from moe_eval.records.kernels import KernelsRecord
from moe_eval.sharing import traces
from moe_eval.traces.readers import files
