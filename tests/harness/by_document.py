"""Two evaluations of a task, beside each other document by document."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

Rows = Mapping[tuple[int, str], Mapping[str, Any]]  # by document and filter


def rows(samples: Sequence[Mapping[str, Any]]) -> Rows:
    """Samples as the harness logs them."""
    return {(row["doc_id"], row["filter"]): row for row in samples}


def written(folder: Path, task: str) -> Rows:
    """The samples that an evaluation has left."""
    (file,) = folder.glob(f"samples_{task}_*.jsonl")
    return rows([json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()])


def differences(ours: Rows, theirs: Rows) -> list[str]:
    """Documents whose prompts, answers or scores differ. Log-likelihoods may by 1e-4 of them, or 1e-4 nats.

    torch's log_softmax in float32 errs by up to 3e-5 nats over 49,152 tokens, which is much of a likelihood near 0.
    """
    assert ours.keys() == theirs.keys()
    hashes = ("doc_hash", "prompt_hash", "target_hash")
    differing = []
    for key, row in theirs.items():
        names = (*hashes, "resps", "filtered_resps", *row["metrics"])
        sides = [list(_leaves([side[name] for name in names])) for side in (ours[key], row)]
        if len(sides[0]) != len(sides[1]) or not all(map(_equal, *sides)):
            differing.append(f"{key}: {sides[0]} and {sides[1]}")
    return differing


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from _leaves(part)
    else:
        yield value


def _equal(ours: Any, theirs: Any) -> bool:
    """Texts, and whether a text is the greedy one, to the last character."""
    return bool(ours == (pytest.approx(theirs, rel=1e-4, abs=1e-4) if isinstance(theirs, float) else theirs))
