"""Which precision and which implementation of the experts really ran, as the kernels tell."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_eval.checkpoint.precision import WEIGHT_ONLY
from moe_eval.traces.kernel_table import NONE, Trace
from moe_eval.traces.roles import NUMBER, Roles
from moe_eval.traces.taxonomy import SEARCHED

# of the expert GEMMs' time, what names have to agree on
_MOST = 0.9
# what kernels cannot tell apart for sure: how scales are laid out is not always in a name
_FAMILIES = {
    **dict.fromkeys(("bf16", "fp16", "fp32"), "unquantised"),
    **dict.fromkeys(("fp8", "fp8_block", "mxfp8"), "8-bit float"),
    **{label: label.split("-")[1] for label in WEIGHT_ONLY.values()},
}


# rules of GEMMs on packed weights of 4 or 8 bits
_WEIGHTS_OF_ANY_BITS = ("triton-fused-moe-wna16", "moe-wna16")
# what a quantising kernel's name says that it makes, the first that is found: types, and TensorRT-LLM's enumerators of
# quantize_with_block_size (0 with blocks of 16 is FP4)
_MAKES = tuple(
    (re.compile(pattern, re.IGNORECASE), precision)
    for pattern, precision in (
        (r"mxfp4|mx_fp4", "mxfp4"),
        (r"fp4|e2m1|quantize_with_block_size<[^>]*\)0, ", "nvfp4"),
        (r"int8|i8(?![0-9])|signed char", "int8"),
        (r"per_token_group_quant|1x128", "fp8_block"),
        (r"fp8|float8|e4m3", "fp8"),
    )
)
# C++ types in names of kernels, demangled or not, that activations of 16 bits have
_TYPES = (
    (re.compile("BFloat16|nv_bfloat16|bfloat16_t"), "bf16"),
    (re.compile("c10::Half|c104Half|__half|half_t"), "fp16"),
)


def _family(precision: str) -> str:
    return _FAMILIES.get(precision, precision)


@dataclass(frozen=True)
class Seen:
    """What ran.

    Attributes:
        precision: a precision's name, `w4a16` or `w8a16` for weights that are dequantised into 16-bit products, `int8`,
            `mixed` for several at once; None where no expert GEMM ran or nothing tells.
        backend: the implementation of the experts that took the most time, None where names do not tell.
        evidence: the kernels that say so, or what is missing that would be there.
    """

    precision: str | None
    backend: str | None
    evidence: str


def observe(trace: Trace, roles: Roles) -> Seen:
    """Read the precision of the experts from what ran.

    A GEMM's own name comes first. A Triton kernel's name has no types in it: there the experts' inputs tell, which have
    to be quantised before a product of low precision; where they are not, their type is that of the kernels around. The
    operators of a CPU have no types in their names, so nothing tells there.
    """
    kernels = trace.kernels
    experts = np.flatnonzero(roles.category == NUMBER["expert_gemm"])
    if not len(experts):
        return Seen(None, None, "no expert GEMM was recognised")
    summed = np.bincount(kernels.name[experts], kernels.duration_ns[experts])
    times = Counter({name: int(summed[name]) for name in np.flatnonzero(np.bincount(kernels.name[experts])).tolist()})
    backend = _weighted({name: roles.labels[name].backend for name in times}, times)[0]
    precision, part = _weighted({name: roles.labels[name].precision for name in times}, times)
    if precision is not None and part >= _MOST:
        return Seen(precision, backend, f"{100 * part:.0f} % of the expert GEMMs' time, mostly {_most(trace, times)}")
    told = {name: found for name in times if (found := roles.labels[name].precision)}
    if told:
        return _by_names(trace, times, told, backend)
    opaque = next((name for name in times if roles.labels[name].rule in _WEIGHTS_OF_ANY_BITS), None)
    if opaque is not None:
        return Seen(None, backend, f"{trace.kernels.names[opaque][:120]} unpacks weights of a width that it leaves out")
    return _by_inputs(trace, roles, backend)


def _by_names(trace: Trace, times: Counter[int], told: Mapping[int, str], backend: str | None) -> Seen:
    """Where names differ: a name that tells is no guess, and what others leave open is not filled in by inputs."""
    named = sorted(set(told.values()))
    if len({_family(each) for each in named}) > 1:
        return Seen("mixed", backend, f"expert GEMMs of {', '.join(named)}")
    part = sum(times[name] for name in told) / (sum(times.values()) or 1)
    if part >= _MOST:
        most = _weighted(told, times)[0]
        return Seen(most, backend, f"expert GEMMs of {' and '.join(named)}, mostly {_most(trace, times)}")
    return Seen(
        None,
        backend,
        f"{100 * part:.0f} % of the expert GEMMs' time is {', '.join(named)}; the names of the others tell nothing",
    )


def _by_inputs(trace: Trace, roles: Roles, backend: str | None) -> Seen:
    """Look for kernels that quantise within the MoE blocks, after the routing has begun."""
    rows = trace.kernels.name
    quantises = np.array([label.category == "quant_dequant" or "quant_dequant" in label.fused_with
                          for label in roles.labels])[rows]  # fmt: skip
    routing = roles.category == NUMBER["routing_permute"]
    blocks = np.where(roles.block == NONE, 0, roles.block + 1)
    inside = (roles.block != NONE) if (roles.block != NONE).any() else np.ones(len(rows), bool)
    begun = np.full(int(blocks.max(initial=0)) + 1, np.iinfo(np.int64).max)
    np.minimum.at(begun, blocks[routing & inside], np.flatnonzero(routing & inside))
    late = inside & (np.arange(len(rows)) >= begun[blocks])
    found = np.flatnonzero(late & quantises)
    if quantises.any() and not (roles.block != NONE).any():
        return Seen(None, backend, "kernels quantise inputs, and no order of launches tells whether the experts'")
    if not len(found):
        return _unquantised(trace, inside, backend)
    counts = np.bincount(rows[found])
    names = Counter({name: int(counts[name]) for name in np.flatnonzero(counts).tolist()})
    told = Counter({name: count for name, count in names.items() if _makes(trace.kernels.names[name])})
    most = trace.kernels.names[(told or names).most_common(1)[0][0]]
    left_out = "" if told else ", whose name leaves out to what"
    return Seen(_makes(most), backend, f"the experts' inputs are quantised by {most[:120]}{left_out}")


def _unquantised(trace: Trace, inside: npt.NDArray[np.bool_], backend: str | None) -> Seen:
    """The type of activations within the MoE blocks, as the names of the kernels there have it."""
    names = trace.kernels.names
    counts = np.bincount(trace.kernels.name[inside], minlength=len(names))
    told = {
        name: precision
        for name in np.argsort(-counts, kind="stable").tolist()
        for pattern, precision in _TYPES
        if counts[name] and pattern.search(names[name][:SEARCHED])
    }
    plain = "no kernel quantises the experts' inputs"
    types = sorted(set(told.values()))
    if len(types) != 1:
        return Seen(None, backend, f"{plain}, and names tell {'of ' + ' and '.join(types) if types else 'no type'}")
    first = names[next(iter(told))][:120]
    return Seen(
        types[0],
        backend,
        f"{plain}, so their products are of the type of {first}, whatever their weights are stored in",
    )


def _makes(name: str) -> str | None:
    """The precision that a quantising kernel's name says it makes, None where it does not say."""
    return next((precision for pattern, precision in _MAKES if pattern.search(name[:SEARCHED])), None)


def _weighted(told: Mapping[int, str | None], times: Mapping[int, int]) -> tuple[str | None, float]:
    """What most of the time agrees on, and its part of all time."""
    total: Counter[str] = Counter()
    for name, value in told.items():
        if value is not None:
            total[value] += times[name]
    if not total:
        return None, 0.0
    value, time = total.most_common(1)[0]
    return value, time / (sum(times.values()) or 1)


def _most(trace: Trace, times: Counter[int]) -> str:
    return trace.kernels.names[times.most_common(1)[0][0]][:120]


def contradiction(label: str, seen: Seen) -> str | None:
    """A sentence where the kernels say that an arm did not run what its label says, else None."""
    if seen.precision is None or _family(label) == _family(seen.precision):
        return None
    what = f"ran {seen.precision}"
    if seen.precision in _FAMILIES.values():
        what = f"dequantised the weights and multiplied in 16 bits ({seen.precision})"
    where = f" on {seen.backend}" if seen.backend else ""
    return f"the label says {label}, but the experts {what}{where}: {seen.evidence}"
