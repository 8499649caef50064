"""Names for the dictionaries of lm-evaluation-harness, which has no types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Arguments = dict[str, Any]  # of a call or a configuration
Dictionary = Mapping[str, Any]
Results = Dictionary  # what simple_evaluate returns
Document = Dictionary  # one item of a task
Answer = Dictionary  # what an evaluator records of a document
Sample = Dictionary  # a document with its answers, as the harness logs it
