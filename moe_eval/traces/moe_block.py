"""Which rows of a trace lie between a layer's router and the end of its experts, whatever their names."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moe_eval.traces.kernel_table import Trace
from moe_eval.traces.roles import NUMBER, Roles

_ROUTING = [NUMBER["gate_gemm"], NUMBER["routing_permute"]]
_EXPERT, _OTHER = NUMBER["expert_gemm"], NUMBER["other"]


def in_moe_block(trace: Trace, roles: Roles) -> npt.NDArray[np.bool_]:
    """Whether a row lies between the first and the last kernel of routing and experts of a layer.

    A layer lasts from its attention to the next one's. Where no finalise ends the experts, the kernels of unknown kind
    right after them are part of the block: one of them may be it, or an expert GEMM. `roles.block` is no help here, as
    it needs expert GEMMs that are known. The result has shape (n,) for the n rows of the trace.
    """
    inside = np.zeros(len(roles.category), np.bool_)
    for device in trace.kernels.by_device:
        kinds = roles.category[device]
        layer = np.cumsum(kinds == NUMBER["attention"])
        known = np.flatnonzero((np.isin(kinds, _ROUTING) | (kinds == _EXPERT)) & (layer > 0))
        if not len(known):
            continue
        layers, first = np.unique(layer[known], return_index=True)
        last = np.append(first[1:], len(known)) - 1
        begins, ends = known[first], known[last]
        experts = np.bincount(layer[kinds == _EXPERT], minlength=int(layer[-1]) + 1)[layers]
        is_open = (kinds[ends] == _EXPERT) | (experts == 0)
        others_end = np.append(np.flatnonzero(kinds != _OTHER), len(kinds))
        following = others_end[np.searchsorted(others_end, ends + 1)]
        ends = np.where(is_open, following - 1, ends)
        edges = np.zeros(len(kinds) + 1, np.int64)
        np.add.at(edges, begins, 1)
        np.add.at(edges, ends + 1, -1)
        inside[device[np.cumsum(edges[:-1]) > 0]] = True
    return inside
