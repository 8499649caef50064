"""The category of a kernel by its name: the first rule of taxonomy.toml that fits decides."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

import msgspec

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CATEGORIES = tuple(
    """
    expert_gemm attention gate_gemm dense_gemm routing_permute quant_dequant norm rope_kv activation allreduce sampling
    memory elementwise other
    """.split()  # noqa: SIM905
)
PRECISIONS = ("bf16", "fp8", "fp8_block", "nvfp4", "mxfp4", "mxfp8", "w4a16", "w8a16")

# The characters of a name that are searched. The longest of vLLM 0.22.1's kernels has 3,338 characters when demangled
# and has its types in the first 1,400, so nothing is lost, and a name of any length costs no more than one of this one.
SEARCHED = 8192

_NO_METACHARACTERS = re.compile(r"[\w: ,<>&-]+")
# what may match nothing, or other characters than are written: escapes, sets, groups, and what can be repeated 0 times
_NOT_VERBATIM = re.compile(r"\\.|\[[^]]*\]|\(.*\)|.?[?*]|.?\{[^}]*\}|[\^$.+]", re.DOTALL)


@dataclass(frozen=True)
class Label:
    """A kernel by its name.

    Attributes:
        category: one of CATEGORIES, "other" where no rule knows the name.
        rule: the id of the rule that decided, "" for none.
        fused_with: categories of the kernel's other work.
        precision: of the operands of a GEMM, one of PRECISIONS. None where the name leaves it open.
        backend: which library or compiler the kernel is from. None where the name leaves it open.
        selects: whether it chooses the experts of every token.
    """

    category: str
    rule: str
    fused_with: tuple[str, ...] = ()
    precision: str | None = None
    backend: str | None = None
    selects: bool = False


@dataclass(frozen=True)
class Pattern:
    """A regular expression, with a piece that is in every match: looking for that is many times faster.

    Attributes:
        text: the expression.
        literal: the piece, "" where there is none.
        plain: whether that is all of it.
    """

    text: str
    literal: str
    plain: bool

    def fits(self, name: str) -> bool:
        return self.literal in name and (self.plain or _finder(self.text)(name) is not None)


@dataclass(frozen=True)
class Rule:
    """One of taxonomy.toml, whose head describes its fields."""

    id: str
    category: str
    match: tuple[Pattern, ...]
    also: tuple[Pattern, ...]
    unless: tuple[Pattern, ...]
    fused_with: tuple[tuple[Pattern, tuple[str, ...]], ...]
    evidence: tuple[tuple[Pattern, str], ...]
    backend: str | None
    selects: bool

    def fits(self, name: str) -> bool:
        return (
            any(pattern.fits(name) for pattern in self.match)
            and all(pattern.fits(name) for pattern in self.also)
            and not any(pattern.fits(name) for pattern in self.unless)
        )

    def label(self, name: str) -> Label:
        fused = (category for pattern, categories in self.fused_with if pattern.fits(name) for category in categories)
        precision = next((operands for pattern, operands in self.evidence if pattern.fits(name)), None)
        return Label(self.category, self.id, tuple(dict.fromkeys(fused)), precision, self.backend, self.selects)


@cache
def classify(name: str) -> Label:
    """The label of a kernel, a copy, a set or an operator of torch, by its name as a profiler wrote it.

    Safe for any string: it takes time in proportion to the name's length up to SEARCHED, and none beyond.
    """
    head = name[:SEARCHED]
    rule = next((rule for rule in rules() if rule.fits(head)), None)
    return rule.label(head) if rule is not None else Label("other", "")


@dataclass(frozen=True)
class _Row:
    """A rule as it stands in taxonomy.toml."""

    id: str
    category: str
    match: tuple[str, ...]
    also: tuple[str, ...] = ()
    unless: tuple[str, ...] = ()
    fused_with: tuple[str, ...] | Mapping[str, tuple[str, ...]] = ()
    evidence: str | None = None
    precision: str | None = None
    backend: str | None = None
    selects: bool = False


@dataclass(frozen=True)
class _Table:
    """taxonomy.toml: the rules, and precisions by pattern in each kind of evidence."""

    rule: tuple[_Row, ...]
    evidence: Mapping[str, Mapping[str, str]]


@cache
def rules() -> tuple[Rule, ...]:
    """The rules in their order."""
    text = resources.files("moe_eval.traces").joinpath("taxonomy.toml").read_text(encoding="utf-8")
    table = msgspec.convert(tomllib.loads(text), _Table)
    return tuple(_rule(row, table.evidence) for row in table.rule)


def _rule(row: _Row, evidence: Mapping[str, Mapping[str, str]]) -> Rule:
    fused = row.fused_with if isinstance(row.fused_with, Mapping) else {"": row.fused_with}
    precisions = {"": row.precision} if row.precision is not None else {}
    if row.evidence is not None:
        precisions = dict(evidence[row.evidence])
    return Rule(
        row.id,
        row.category,
        tuple(map(_pattern, row.match)),
        tuple(map(_pattern, row.also)),
        tuple(map(_pattern, row.unless)),
        tuple((_pattern(text), categories) for text, categories in fused.items()),
        tuple((_pattern(text), precision) for text, precision in precisions.items()),
        row.backend,
        row.selects,
    )


@cache
def _pattern(text: str) -> Pattern:
    plain = not text or _NO_METACHARACTERS.fullmatch(text) is not None
    return Pattern(text, text if plain else _literal(text), plain)


def _literal(text: str) -> str:
    """The longest run of characters that is in every match, "" where the expression has alternatives."""
    runs = _NOT_VERBATIM.sub("\0", text).split("\0")
    return "" if any("|" in run for run in runs) else max(runs, key=len)


@cache
def _finder(text: str) -> Callable[[str], re.Match[str] | None]:
    """Compiled when a name first needs it, as most need few. An anchored one is tried at the beginning only."""
    compiled = re.compile(text)
    return compiled.match if text.removeprefix("(?s)").startswith("^") else compiled.search
