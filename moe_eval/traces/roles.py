"""The category of every kernel of a trace: by name, by the module that launched it, and by place in the layer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from moe_eval.frozen import frozen
from moe_eval.traces import ranges
from moe_eval.traces.kernel_table import KERNEL, NONE, Bytes, Ints, Trace, distinct
from moe_eval.traces.taxonomy import CATEGORIES, Label, classify

Mask = npt.NDArray[np.bool_]
NUMBER = {name: at for at, name in enumerate(CATEGORIES)}
_IS_OF_LAYER = np.array([name in ("attention", "expert_gemm") for name in CATEGORIES])
_IS_SMALL = np.array([name in ("elementwise", "memory", "quant_dequant") for name in CATEGORIES])
_IS_GEMM = np.array([name.endswith("_gemm") for name in CATEGORIES])
# the last parts of a module's path: Qwen3, Mixtral, DeepSeek and OLMoE call them so
_GATE = r"\.(gate|router)(\.|$)"
_EXPERTS = r"\.experts(\.|$)"
# cuBLAS finishes a GEMM whose sum it has split with one of these
_EPILOGUE = r"(?i)splitK_?reduce"
_SUM = "sum_functor"
# of attention or of the router; the logarithm is of a model's output
_SOFTMAX = r"(?i)(?<!log)(?<!log_)soft_?max"
# kernels between a product of eager attention and its softmax: scale, mask, sinks, conversion
_BETWEEN = 8


@frozen
class Roles:
    """The rows of a trace with their categories. Arrays have shape (n,).

    Attributes:
        labels: of the distinct names. `category`: indices into CATEGORIES.
        layer: of the model, where a range names it, else NONE. `block`: which MoE block of the trace a row is part of,
            in order, NONE where the order of launches does not show it.
        gates: how the gate's GEMM was distinguished from the other dense ones.
    """

    labels: tuple[Label, ...]
    category: Bytes
    layer: Ints
    block: Ints
    gates: str

    @cached_property
    def in_layer(self) -> Mask:
        """Which rows are of attention or experts."""
        return _IS_OF_LAYER[self.category]


def assign(trace: Trace) -> Roles:
    """Give every row a category."""
    rows = trace.kernels
    labels = tuple(classify(name) for name in rows.names)
    by_name = np.array([NUMBER[label.category] for label in labels] or [0], np.int8)
    category = by_name[rows.name] if len(rows) else np.zeros(0, np.int8)
    layer = np.full(len(rows), NONE, np.int64)
    block = layer.copy()
    by_label = {"by name"} if (category == NUMBER["gate_gemm"]).any() else set()
    category[rows.kind != KERNEL] = NUMBER["memory"]
    gate_sources = by_label | _by_module(trace, category, layer)
    if trace.timed:
        for device in rows.by_device:
            gate_sources |= _by_place(trace, labels, device, category, block)
    return Roles(labels, category, layer, block, " and ".join(sorted(gate_sources)) or "not told apart")


def _part(path: str) -> int:
    """The category of a module's GEMMs where it is a gate, the experts that tokens are routed to or a part of them."""
    if re.search(_EXPERTS, path) and "shared" not in path:
        return NUMBER["expert_gemm"]
    return NUMBER["gate_gemm"] if re.search(_GATE, path) else NONE


def _by_module(trace: Trace, category: Bytes, layer: Ints) -> set[str]:
    """Mark layers, and GEMMs of gates and experts, where ranges name modules."""
    texts = {at: parsed for at, text in enumerate(trace.ranges.names) if (parsed := ranges.module(text))}
    if not texts:
        return set()
    rows = trace.kernels
    modules = trace.ranges.take(np.isin(trace.ranges.name, list(texts)))
    captured = rows.captured_ns != NONE
    at_ns = np.where(captured, rows.captured_ns, rows.launch_ns)
    thread = np.where(captured, rows.captured_thread, rows.launch_thread)
    around = ranges.innermost(modules, at_ns, thread)
    inside = np.flatnonzero(around != NONE)
    module = modules.name[around[inside]]
    size = len(trace.ranges.names)
    layer[inside] = np.array([texts[at].layer if at in texts else NONE for at in range(size)])[module]
    part = np.array([_part(texts[at].path) if at in texts else NONE for at in range(size)], np.int8)[module]
    is_part = _IS_GEMM[category[inside]] & (part != NONE)
    category[inside[is_part]] = part[is_part]
    return {"by range"} if (part[is_part] == NUMBER["gate_gemm"]).any() else set()


def _by_place(trace: Trace, labels: Sequence[Label], device: Ints, category: Bytes, block: Ints) -> set[str]:
    """Read the order of launches on one device: attention, o_proj, gate, routing, expert GEMMs, their sum.

    A block is what runs between a layer's last attention kernel and its last expert GEMM. In it softmax and top-k are
    the router's and not the sampler's. Of two or more dense GEMMs before the routing the last is the gate's. A
    sum right after the expert GEMMs puts the experts' outputs together.
    """
    kinds = category[device]
    attention = np.flatnonzero(kinds == NUMBER["attention"])
    expert = np.flatnonzero(kinds == NUMBER["expert_gemm"])
    if not len(expert):
        return set()
    attention = distinct(np.concatenate([attention, _eager_softmax(trace, kinds, device)]))
    category[device[attention]] = kinds[attention] = NUMBER["attention"]
    before = np.searchsorted(attention, expert) - 1  # the last attention kernel before every expert GEMM
    first = np.flatnonzero(np.diff(before, prepend=-2))  # the first expert GEMM of every block
    last = np.append(first[1:], len(expert)) - 1
    follows = expert[last] + 1
    follows = follows[follows < len(kinds)]
    follows = follows[_matches(trace, device[follows], _SUM) & (kinds[follows] == NUMBER["elementwise"])]
    category[device[follows]] = NUMBER["routing_permute"]
    if not len(attention):
        return set()
    keep = before[first] >= 0
    begins, ends, closes = attention[before[first[keep]]], expert[first[keep]], expert[last[keep]]
    place = np.arange(len(kinds))
    number = np.cumsum(np.bincount(begins, minlength=len(kinds))) - 1  # of the last block that has begun
    in_block = place <= np.append(closes, -1)[number]
    inside = np.flatnonzero(in_block)
    block[device[inside]] = number[inside] + block.max() + 1
    early = in_block & (place < np.append(ends, -1)[number])
    category[device[early & (kinds == NUMBER["sampling"])]] = NUMBER["routing_permute"]
    return _gates(trace, labels, device, category, early=early, number=number)


def _eager_softmax(trace: Trace, kinds: Bytes, device: Ints) -> Ints:
    """The softmax kernels after one dense GEMM and before two, of queries and keys, of values, and the output's.

    Beside them is nothing but small kernels. A selection follows the router's, and a choice of tokens the sampler's.
    """
    rows = trace.kernels
    sampling = np.flatnonzero(kinds == NUMBER["sampling"])
    softmax = sampling[_matches(trace, device[sampling], _SOFTMAX)]
    if not len(softmax):
        return softmax
    passes = (_IS_SMALL[kinds] | _matches(trace, device, _EPILOGUE)) & (rows.kind[device] == KERNEL)
    stops = np.flatnonzero(~passes)
    place = np.searchsorted(stops, softmax)
    inner = (place > 0) & (place + 2 < len(stops))
    softmax, place = softmax[inner], place[inner]
    neighbours = stops[place[:, None] + [-1, 1, 2]]  # (n, 3)
    products: Mask = (kinds[neighbours] == NUMBER["dense_gemm"]).all(axis=1)
    near: Mask = np.abs(neighbours[:, :2] - softmax[:, None]).max(axis=1, initial=0) <= _BETWEEN
    return softmax[products & near]


def _matches(trace: Trace, rows: Ints, pattern: str) -> Mask:
    """Which of some rows have a name in which the pattern is found."""
    by_name = np.array([bool(re.search(pattern, name)) for name in trace.kernels.names], np.bool_)
    return by_name[trace.kernels.name[rows]]


def _beside_activation(kinds: Bytes, early: Mask, number: Ints) -> Mask:
    """Which rows are the last GEMM before, or the first after, an activation of their block."""
    beside = np.zeros(len(kinds), np.bool_)
    gemms = np.flatnonzero(early & (kinds == NUMBER["dense_gemm"]))
    acts = np.flatnonzero(early & (kinds == NUMBER["activation"]))
    if len(gemms):
        for side in (-1, 0):
            at = np.searchsorted(gemms, acts) + side
            exists = (at >= 0) & (at < len(gemms))
            row = gemms[at[exists]]
            beside[row[number[row] == number[acts[exists]]]] = True
    return beside


def _gates(
    trace: Trace, labels: Sequence[Label], device: Ints, category: Bytes, *, early: Mask, number: Ints
) -> set[str]:
    """Mark the last of several dense GEMMs before the routing in every block, and the reduction that finishes it.

    Blocks whose gate is known by its range or name are done. Engines have both only for some steps. GEMMs around an
    activation, or on a stream on which no attention of the block ran, are those of shared experts.
    """
    kinds = category[device]
    gated = early & (kinds == NUMBER["gate_gemm"])
    if len(distinct(number[gated])) == number.max(initial=-1) + 1:
        return set()
    epilogue = _matches(trace, device, _EPILOGUE)
    names = trace.kernels.name[device]
    selects = np.array([label.selects for label in labels])[names]
    limit = np.full(int(number.max(initial=0)) + 1, -1)
    for routing in (kinds == NUMBER["routing_permute"], selects):  # what selects experts decides, where it is known
        rows = np.flatnonzero(early & routing)
        first = rows[np.flatnonzero(np.diff(number[rows], prepend=-2))]  # of every block
        limit[number[first]] = first
    place = np.arange(len(kinds))
    limit[number[np.flatnonzero(gated)]] = -1
    dense = np.flatnonzero(early & (kinds == NUMBER["dense_gemm"]) & ~epilogue & (place < limit[number]))
    stream, attention = trace.kernels.stream[device], np.flatnonzero(kinds == NUMBER["attention"])
    dense = dense[stream[dense] == stream[attention[np.searchsorted(attention, dense) - 1]]]
    dense = dense[~_beside_activation(kinds, early, number)[dense]]
    last = np.flatnonzero(np.diff(number[dense], append=-2))  # of every block
    gates = dense[last[np.diff(last, prepend=-1) >= 2]]
    if not len(gates):
        return set()
    category[device[gates]] = NUMBER["gate_gemm"]
    after = gates[gates + 1 < len(kinds)] + 1
    after = after[epilogue[after] & (kinds[after] == NUMBER["dense_gemm"])]
    category[device[after]] = NUMBER["gate_gemm"]
    return {"by the order of launches"}
