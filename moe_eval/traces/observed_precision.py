"""Which precision and which implementation of the experts really ran, by the kernels."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from moe_eval.checkpoint.precision import LABELS
from moe_eval.frozen import frozen
from moe_eval.traces.kernel_table import KERNEL, NONE, Trace
from moe_eval.traces.roles import NUMBER, Roles
from moe_eval.traces.taxonomy import SEARCHED

# of the expert GEMMs' time, the part whose names have to agree
_AGREEING = 0.9
# precisions that kernels cannot distinguish for sure
_FAMILIES = {
    **dict.fromkeys(("bf16", "fp16", "fp32"), "unquantised"),
    **dict.fromkeys(("fp8", "fp8_channel", "fp8_block"), "8-bit float"),
    **{label: label.split("-")[1] for label in LABELS if "-" in label},
}
_NAME_LENGTH = 120  # characters of a kernel's name in a sentence

# rules of GEMMs on packed weights of 4 or 8 bits
_WEIGHTS_OF_ANY_BITS = ("triton-fused-moe-wna16", "moe-wna16")
# the type that a quantising kernel makes, by the first pattern that its name fits: types, TensorRT-LLM's enumerators of
# quantize_with_block_size (0 with blocks of 16 is FP4, 2 with blocks of 32 is MXFP8), and AMD's, whose FP4 is MXFP4.
# A kernel that names two types is for either.
_MAKES: tuple[tuple[str, str | None], ...] = (
    (r"mx_?fp4|^(?=.*(opus|ck_tile|hip_bfloat16|DF16b|e8m0)).*(fp4|f4x2|e2m1)", "mxfp4"),
    (r"mx_?fp8|quantize_with_block_size<[^>]*\)2, |^(?=.*e8m0).*(fp8|e4m3)", "mxfp8"),
    (r"fp4|e2m1|quantize_with_block_size<[^>]*\)0, ", "nvfp4"),
    (r"fp8_i8|i8_fp8", None),
    (r"int8|i8(?![0-9])|signed char", "int8"),
    (r"per_token_group_quant|1x128|per_token_cast_to_fp8|per_group\w{0,20}<.*fp8|fp8_group_quant", "fp8_block"),
    (r"fp8|float8|e4m3|\bf8\w{0,8}_t\b|_BitInt\(8\)", "fp8"),
)
# C++ types in names of kernels, demangled or not, that activations of 16 bits have
_TYPES = (
    ("BFloat16|nv_bfloat16|hip_bfloat16|bfloat16_t|DF16b|bf16_t|bhalf_t", "bf16"),
    ("c10::Half|c104Half|__half|half_t|DF16_|_Float16", "fp16"),
)


def _family(precision: str) -> str:
    return _FAMILIES.get(precision, precision)


@frozen
class ObservedPrecision:
    """How the experts ran, by their kernels.

    Attributes:
        precision: a precision's name, `w4a16` or `w8a16` for weights that are dequantised into 16-bit products, `int8`,
            `mixed` for several at once. None where no expert GEMM ran or no kernel shows it.
        backend: the implementation of the experts that took the most time, None where names leave it open.
        evidence: the kernels that show it, or the reason why nothing is known.
    """

    precision: str | None
    backend: str | None
    evidence: str


def observe(trace: Trace, roles: Roles) -> ObservedPrecision:
    """Read the precision of the experts from what ran.

    A GEMM's own name comes first. A Triton kernel's name has no types in it: for it the experts' inputs count, which
    have to be quantised before a product of low precision. Where they are not, their type is that of the kernels
    around. The operators of a CPU have no types in their names, so nothing is known of them.
    """
    kernels = trace.kernels
    experts = np.flatnonzero(roles.category == NUMBER["expert_gemm"])
    if not len(experts):
        return ObservedPrecision(None, None, "no expert GEMM was recognised")
    summed = np.bincount(kernels.name[experts], kernels.duration_ns[experts])
    times = Counter({name: int(summed[name]) for name in np.flatnonzero(np.bincount(kernels.name[experts])).tolist()})
    backend = _weighted({name: roles.labels[name].backend for name in times}, times)[0]
    precision, part = _weighted({name: roles.labels[name].precision for name in times}, times)
    if precision is not None and part >= _AGREEING:
        evidence = f"{100 * part:.0f} % of the expert GEMMs' time, mostly {_longest(trace, times)}"
        return ObservedPrecision(precision, backend, evidence)
    by_name = {name: label for name in times if (label := roles.labels[name].precision)}
    if by_name:
        return _by_names(trace, times, by_name, backend)
    opaque = next((name for name in times if roles.labels[name].rule in _WEIGHTS_OF_ANY_BITS), None)
    if opaque is not None:
        evidence = f"{trace.kernels.names[opaque][:_NAME_LENGTH]} unpacks weights of a width that it leaves out"
        return ObservedPrecision(None, backend, evidence)
    return _by_inputs(trace, roles, backend)


def _by_names(trace: Trace, times: Counter[int], by_name: Mapping[int, str], backend: str | None) -> ObservedPrecision:
    """Where names differ: a precision in a name is no guess, and inputs do not fill in the names without one."""
    precisions = sorted(set(by_name.values()))
    if len({_family(precision) for precision in precisions}) > 1:
        return ObservedPrecision("mixed", backend, f"expert GEMMs of {', '.join(precisions)}")
    part = sum(times[name] for name in by_name) / (sum(times.values()) or 1)
    if part >= _AGREEING:
        evidence = f"expert GEMMs of {' and '.join(precisions)}, mostly {_longest(trace, times)}"
        return ObservedPrecision(_weighted(by_name, times)[0], backend, evidence)
    evidence = f"{100 * part:.0f} % of the expert GEMMs' time is {', '.join(precisions)}"
    return ObservedPrecision(None, backend, f"{evidence}, and the names of the others have no precision")


def _by_inputs(trace: Trace, roles: Roles, backend: str | None) -> ObservedPrecision:
    """Look for kernels that quantise within the MoE blocks, after the routing has begun."""
    rows = trace.kernels.name
    quantises = np.array(
        [label.category == "quant_dequant" or "quant_dequant" in label.fused_with for label in roles.labels]
    )[rows]
    routing = roles.category == NUMBER["routing_permute"]
    blocks = np.where(roles.block == NONE, 0, roles.block + 1)
    inside = (roles.block != NONE) if (roles.block != NONE).any() else np.ones(len(rows), bool)
    begun = np.full(int(blocks.max(initial=0)) + 1, np.iinfo(np.int64).max)
    np.minimum.at(begun, blocks[routing & inside], np.flatnonzero(routing & inside))
    late = inside & (np.arange(len(rows)) >= begun[blocks])
    quantisers = np.flatnonzero(late & quantises)
    if quantises.any() and not (roles.block != NONE).any():
        evidence = "kernels quantise inputs, and no order of launches shows whether the experts'"
        return ObservedPrecision(None, backend, evidence)
    if not len(quantisers):
        unknown = np.flatnonzero(late & (roles.category == NUMBER["other"]) & (trace.kernels.kind == KERNEL))
        if len(unknown):
            name = trace.kernels.names[rows[unknown[0]]][:_NAME_LENGTH]
            return ObservedPrecision(None, backend, f"{name} in the MoE block is of no known kind and may quantise")
        return _unquantised(trace, inside, backend)
    counts = np.bincount(rows[quantisers], trace.kernels.count[quantisers])
    names = Counter({name: int(counts[name]) for name in np.flatnonzero(counts).tolist()})
    with_type = Counter({name: count for name, count in names.items() if _makes(trace.kernels.names[name])})
    common = trace.kernels.names[(with_type or names).most_common(1)[0][0]]
    left_out = "" if with_type else ", whose name leaves out to which type"
    evidence = f"the experts' inputs are quantised by {common[:_NAME_LENGTH]}{left_out}"
    return ObservedPrecision(_makes(common), backend, evidence)


def _unquantised(trace: Trace, inside: npt.NDArray[np.bool_], backend: str | None) -> ObservedPrecision:
    """The type of activations within the MoE blocks, as the names of the kernels there have it."""
    names = trace.kernels.names
    counts = np.bincount(trace.kernels.name[inside], trace.kernels.count[inside], len(names))
    by_name = {
        name: precision
        for name in np.argsort(-counts, kind="stable").tolist()
        for pattern, precision in _TYPES
        if counts[name] and re.search(pattern, names[name][:SEARCHED])
    }
    plain = "no kernel quantises the experts' inputs"
    types = sorted(set(by_name.values()))
    if len(types) != 1:
        evidence = f"{plain}, and names have {' and '.join(types) if types else 'no type'}"
        return ObservedPrecision(None, backend, evidence)
    first = names[next(iter(by_name))][:_NAME_LENGTH]
    evidence = f"{plain}, so their products are of the type of {first}, whatever their weights are stored in"
    return ObservedPrecision(types[0], backend, evidence)


def _makes(name: str) -> str | None:
    """The precision that a quantising kernel's name says it makes, None where it names none."""
    return next((precision for pattern, precision in _MAKES if re.search(pattern, name[:SEARCHED], re.I | re.S)), None)


def _weighted(values: Mapping[int, str | None], times: Mapping[int, int]) -> tuple[str | None, float]:
    """The value with the most time, and its part of all time."""
    total: Counter[str] = Counter()
    for name, value in values.items():
        if value is not None:
            total[value] += times[name]
    if not total:
        return None, 0.0
    value, time = total.most_common(1)[0]
    return value, time / (sum(times.values()) or 1)


def _longest(trace: Trace, times: Counter[int]) -> str:
    return trace.kernels.names[times.most_common(1)[0][0]][:_NAME_LENGTH]


def contradiction(label: str, observed: ObservedPrecision) -> str | None:
    """A sentence where an arm did not run the precision of its label by its kernels, else None."""
    if observed.precision is None or _family(label) == _family(observed.precision):
        return None
    if label == "mxfp8" and _family(observed.precision) == _family("fp8"):
        return None  # how scales are laid out is not in every name of an FP8 kernel
    action = f"ran {observed.precision}"
    if observed.precision in _FAMILIES.values():
        action = f"dequantised the weights and multiplied in 16 bits ({observed.precision})"
    where = f" on {observed.backend}" if observed.backend else ""
    return f"the label says {label}, but the experts {action}{where}: {observed.evidence}"
