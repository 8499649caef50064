"""The ranges of a trace by their text: forward steps of a serving engine, and modules of a model."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from moe_eval.traces.kernel_table import NONE, Ints, Ranges

Phase = Literal["prefill", "decode", "mixed"]

# TensorRT-LLM: `[Executor] _forward_step 7: 1 ctx reqs, 512 ctx tokens, 0 gen reqs` (PyExecutor; tokens since 2026)
_TRTLLM = re.compile(r"_forward_step (\d+): (\d+) ctx reqs,(?: (\d+) ctx tokens,)? (\d+) gen reqs")
# vLLM: `execute_context_1(512)_generation_0(0)` (Worker.annotate_profile)
_VLLM = re.compile(r"execute_context_(\d+)\((\d+)\)_generation_(\d+)\((\d+)\)")
# SGLang: `step[EXTEND bs=2 toks=4096]`, `step[DECODE bs=16]`, any other ForwardMode (build_step_span_name). Drafts
# (`step[DRAFT_EXTEND ...]`) are no steps, as they run between two verifications, and belong to the one before
_SGLANG = re.compile(r"step\[(EXTEND|SPLIT_PREFILL|DLLM_EXTEND|DECODE|TARGET_VERIFY|MIXED)\b")
_SGLANG_PHASE: dict[str, Phase] = {
    **dict.fromkeys(("EXTEND", "SPLIT_PREFILL", "DLLM_EXTEND"), "prefill"),
    **dict.fromkeys(("DECODE", "TARGET_VERIFY"), "decode"),
    "MIXED": "mixed",
}

_MODULE = re.compile(r"(?:^|\.)layers\.(\d+)(?:\.|$)")
_LONGEST = 10_000  # a module's range holds the shapes of its parameters, and no more


@dataclass(frozen=True)
class Module:
    """A module of the model: its dotted path, and the layer that the path names."""

    path: str
    layer: int


@cache
def step(text: str) -> Phase | None:
    """Which phase a range names if it is one forward step of an engine, else None."""
    if match := _TRTLLM.search(text):
        return _phase(int(match[2]), int(match[4]))
    if match := _VLLM.search(text):
        return _phase(int(match[1]), int(match[3]))
    if match := _SGLANG.search(text):
        return _SGLANG_PHASE[match[1]]
    return None


def _phase(context: int, generation: int) -> Phase | None:
    if not context and not generation:
        return None
    return "mixed" if context and generation else "prefill" if context else "decode"


@cache
def module(text: str) -> Module | None:
    """The module of a layer that a range names, else None.

    TensorRT-LLM's layer-wise marker writes Python's repr of a dict whose `Module` is the path. Others write the path.
    """
    path = text
    if text.startswith("{") and len(text) < _LONGEST:
        try:
            path = str(ast.literal_eval(text).get("Module", ""))
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
    if len(path) >= _LONGEST or any(letter.isspace() for letter in path):
        return None
    match = _MODULE.search(path)
    return Module(path, int(match[1])) if match else None


def is_known(text: str) -> bool:
    """Whether a range names a step or a module. Others are not written to copies of a trace."""
    return step(text) is not None or module(text) is not None


def innermost(ranges: Ranges, at_ns: Ints, thread: Ints) -> Ints:
    """For every moment on a thread the row of the innermost range around it, NONE where there is none.

    Arrays have shape (n,). A moment of NONE is in no range.
    """
    around = np.full(len(at_ns), NONE, np.int64)
    for number in np.unique(ranges.thread):
        rows = np.flatnonzero(ranges.thread == number)
        moments = np.flatnonzero((thread == number) & (at_ns != NONE))
        if not len(moments):
            continue
        starts, ends = ranges.start_ns[rows], ranges.end_ns[rows]
        parents = _parents(starts, ends)
        place = np.searchsorted(starts, at_ns[moments], side="right") - 1
        while True:
            over = (place >= 0) & (ends[place] < at_ns[moments])
            if not over.any():
                break
            place[over] = parents[place[over]]
        around[moments] = np.where(place >= 0, rows[place], NONE)
    return around


def _parents(starts: Ints, ends: Ints) -> Ints:
    """For every range of one thread, by start, the one that was open when it began, NONE where none was."""
    parents = np.full(len(starts), NONE, np.int64)
    open_: list[int] = []
    for row, start in enumerate(starts.tolist()):
        while open_ and ends[open_[-1]] <= start:
            open_.pop()
        if open_:
            parents[row] = open_[-1]
        open_.append(row)
    return parents
