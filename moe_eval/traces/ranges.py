"""The ranges of a trace by their text: forward steps of a serving engine, and modules of a model."""

from __future__ import annotations

import ast
import re
from functools import cache
from typing import Literal

import numpy as np

from moe_eval.frozen import frozen
from moe_eval.traces.kernel_table import NONE, Ints, Ranges, distinct

Phase = Literal["prefill", "decode", "mixed"]

UNPHASED: Literal["step"] = "step"  # of a range that is a step and does not say of which phase

# What names both counts of requests, those with a prompt to read first:
_COUNTED = (
    # TensorRT-LLM: `[Executor] _forward_step 7: 1 ctx reqs, 512 ctx tokens, 0 gen reqs` (PyExecutor; without a
    # number before 0.19, without tokens before 2026)
    r"_forward_step\b[^:]*: (\d+) ctx reqs\b.*?(\d+) gen reqs",
    # vLLM (Worker.annotate_profile): `execute_context_1(512)_generation_0(0)`, with sums of lengths
    # `execute_1025_context_1(sq1024sk...)_generation_1(sq1sk...)`, as SGLang's roofline annotations too
    r"execute_(?:\d+_)?context_(\d+)\([^)]*\)_generation_(\d+)\(",
    # vLLM 0.10 to 0.13: new requests, and those that ran before (decode, or a further chunk of a prompt)
    r"execute_new_(\d+)_cached_(\d+)",
)
# SGLang: `step[EXTEND bs=2 toks=4096]`, `step[DECODE bs=16]`, any other ForwardMode (build_step_span_name). Drafts
# (`step[DRAFT_EXTEND ...]`) are no steps, as they run between two verifications, and belong to the one before
_SGLANG = r"step\[(EXTEND|SPLIT_PREFILL|DLLM_EXTEND|DECODE|TARGET_VERIFY|MIXED)\b"
_SGLANG_PHASE: dict[str, Phase] = {
    **dict.fromkeys(("EXTEND", "SPLIT_PREFILL", "DLLM_EXTEND"), "prefill"),
    **dict.fromkeys(("DECODE", "TARGET_VERIFY"), "decode"),
    "MIXED": "mixed",
}
# AMD's ATOM: `prefill[bs=2 tok=14721 ctx=[...]]`, `decode[bs=128 tok=384 p=2 d=126]` with p requests of prefill in it
_ATOM = r"(prefill|decode)\[bs=\d+.*\]"
_ATOM_PREFILLS = r"\bp=0*[1-9]"
_SIZE = r"\[(?:\w+ )?bs=(\d+)"  # of both
# vLLM's scopes for profiling (VLLM_CUSTOM_SCOPES_FOR_PROFILING; `Forward` before 0.12)
_UNPHASED = r"(?:gpu_model_runner: forward|Forward|execute_model)"

_MODULE = r"(?:^|\.)layers\.(\d+)(?:\.|$)"
_LONGEST = 10_000  # a module's range holds the shapes of its parameters, and no more


@frozen
class Module:
    """A module of the model: its dotted path, and the layer that the path names."""

    path: str
    layer: int


@cache
def step(text: str) -> Phase | Literal["step"] | None:
    """Which phase a range names if it is one forward step of an engine, UNPHASED if it names none, else None."""
    for pattern in _COUNTED:
        if match := re.search(pattern, text):
            return _phase(int(match[1]), int(match[2]))
    if match := re.search(_SGLANG, text):
        return _SGLANG_PHASE[match[1]]
    if match := re.fullmatch(_ATOM, text):
        return "prefill" if match[1] == "prefill" else "mixed" if re.search(_ATOM_PREFILLS, text) else "decode"
    return UNPHASED if re.fullmatch(_UNPHASED, text) else None


def _phase(context: int, generation: int) -> Phase | None:
    if not context and not generation:
        return None
    return "mixed" if context and generation else "prefill" if context else "decode"


@cache
def requests(text: str) -> int | None:
    """The requests in a step by its range's text, None where it names none."""
    for pattern in _COUNTED:
        if match := re.search(pattern, text):
            return int(match[1]) + int(match[2])
    match = re.search(_SIZE, text) if step(text) else None
    return int(match[1]) if match else None


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
    if len(path) >= _LONGEST or path.split() != [path]:
        return None
    match = re.search(_MODULE, path)
    return Module(path, int(match[1])) if match else None


def is_known(text: str) -> bool:
    """Whether a range names a step or a module. Others are not written to copies of a trace."""
    return step(text) is not None or module(text) is not None


def outermost(ranges: Ranges) -> Ranges:
    """The ranges without those that lie within another one of their thread: engines mark a step more than once."""
    keep = np.ones(len(ranges), np.bool_)
    for number in distinct(ranges.thread):
        rows = np.flatnonzero(ranges.thread == number)
        ends = ranges.end_ns[rows]
        keep[rows[1:]] = ends[1:] > np.maximum.accumulate(ends)[:-1]
    return ranges.take(keep)


def innermost(ranges: Ranges, at_ns: Ints, thread: Ints) -> Ints:
    """For every moment on a thread the row of the innermost range around it, NONE where there is none.

    Arrays have shape (n,). A moment of NONE is in no range.
    """
    around = np.full(len(at_ns), NONE, np.int64)
    for number in distinct(ranges.thread):
        rows = np.flatnonzero(ranges.thread == number)
        moments = np.flatnonzero((thread == number) & (at_ns != NONE))
        if not len(moments):
            continue
        starts, ends, moment_ns = ranges.start_ns[rows], ranges.end_ns[rows], at_ns[moments]
        parents = _parents(starts, ends)
        place = np.searchsorted(starts, moment_ns, side="right") - 1
        over = np.flatnonzero((place >= 0) & (ends[place] < moment_ns))
        while len(over):
            place[over] = outer = parents[place[over]]
            over = over[(outer >= 0) & (ends[outer] < moment_ns[over])]
        around[moments] = np.append(rows, NONE)[place]
    return around


def _parents(starts: Ints, ends: Ints) -> Ints:
    """For every range of one thread, by start, the one that was open when it began, NONE where none was."""
    parents = np.arange(len(starts)) - 1  # the range before it, or one around that
    closed = np.arange(len(starts))
    while len(closed := closed[(parents[closed] != NONE) & (ends[parents[closed]] <= starts[closed])]):
        parents[closed] = parents[parents[closed]]
    return parents
