"""A kernel's name as words: namespaces apart, names of libstdc++'s ABI undone, CamelCase as snake_case."""

from __future__ import annotations

import re

from moe_eval.frozen import frozen

# A length and an identifier of the Itanium C++ ABI (5.1.2), but no literal (Li4E, and E2E of an enumerator), no
# substitution (S1_, T0_), no array or vector (A4_, Dv4_) and no width of a type (DF16b).
_LENGTH = re.compile(r"(?<![\dSTA])(?<!L[a-z])(?<!DF)(?<!Dv)(?<!E(?=\dE))(\d{1,4})(?=[A-Za-z_])")
_NEXT = re.compile(r"(\d{1,4})(?=[A-Za-z_])")  # right after an identifier nothing else begins with a digit
_NAMESPACE = re.compile(r"\b\w+::(?=[ \w(])")  # a name that was cut after its namespace has nothing else
_OPERATORS = ("aten::", "mkldnn::", "nccl:")  # of torch's profiler, which are no namespaces of a kernel's
# short forms that have capitals within a word, as they come apart and as they are written here
_TOGETHER = {
    "mo_e_": "moe_",
    **{
        word: word.replace("_", "")
        for word in ("ro_pe", "lo_ra", "si_lu", "ge_lu", "swi_glu", "ge_glu", "re_lu", "a2_a")
    },
}
# a capital that begins a word: after a small letter or a digit, or the last of several before a small letter
_CAPITAL = re.compile(r"[A-Z](?:(?<=[a-z0-9][A-Z])|(?<=[A-Z][A-Z])(?=[a-z]))")
# of CUTLASS, CK, CUB, rocPRIM, cuBLAS and torch
_WRAPPER = re.compile(
    r"device_\w{1,40}|kernel\d?|kentry|run_global|gemm_universal|gemm_with_\w{1,16}|trampoline_kernel|static_kernel"
    r"|\w{0,24}elementwise_(kernel\w{0,24}|grid_stride_kernel)|reduce_kernel|kernel_agent|multi_tensor_apply_kernel"
)


@frozen
class KernelName:
    """A name in the forms that patterns are written for.

    Attributes:
        text: as the profiler wrote it.
        full: all of it as words.
        own: the same without the names of namespaces and the type that the kernel returns.
        identifier: that which `own` begins with, "" where it is one that runs whatever its arguments name.
    """

    text: str
    full: str
    own: str
    identifier: str


def parse(text: str) -> KernelName:
    """The forms of a name, in time proportional to its length."""
    spelled = _unmangled(text).lstrip("N ") if text.startswith("_Z") else text
    full = _CAPITAL.sub(lambda capital: f"_{capital[0]}", spelled).lower()
    for apart, word in _TOGETHER.items():
        full = full.replace(apart, word)
    bare = full
    if "::" in full and not full.startswith(_OPERATORS):
        bare = _NAMESPACE.sub("", full.replace("<unnamed>::", "").replace("(anonymous namespace)::", ""))
    bare = bare.removeprefix("void ").lstrip(" …")
    identifier = re.split("[<( ]", bare, maxsplit=1)[0]
    return KernelName(text, full, bare, "" if _WRAPPER.fullmatch(identifier) else identifier)


def _unmangled(text: str) -> str:
    """A mangled name with its identifiers apart: "::" after a namespace, "<" before arguments of a template."""
    parts: list[str] = []
    at = 2
    while (length := _NEXT.match(text, at) or _LENGTH.search(text, at)) is not None:
        end = length.end() + int(length[1])
        parts += [text[at : length.start()], "" if parts[-1:] == ["::"] else " ", text[length.end() : end]]
        following = text[end : end + 1]
        parts.append("::" if following.isdigit() else "<" if following == "I" else " ")
        at = end + (following == "I")
    return "".join((*parts, text[at:]))
