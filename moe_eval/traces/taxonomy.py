"""What a kernel does, by its name: the rules of taxonomy.toml, of which the first that fits decides."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CATEGORIES = (
    "expert_gemm",
    "attention",
    "gate_gemm",
    "dense_gemm",
    "routing_permute",
    "quant_dequant",
    "norm",
    "rope_kv",
    "activation",
    "allreduce",
    "sampling",
    "memory",
    "elementwise",
    "other",
)
PRECISIONS = ("bf16", "fp8", "fp8_block", "nvfp4", "mxfp4", "mxfp8", "w4a16", "w8a16")

# What is looked at of a name. The longest of vLLM 0.22.1's kernels has 3,338 characters when demangled and tells its
# types in the first 1,400, so that nothing is lost, and a name of any length costs no more than one of this length.
SEARCHED = 8192

_NO_METACHARACTERS = re.compile(r"[\w: ,<>&-]+")
# what may match nothing, or other characters than are written: escapes, sets, groups, and what can be repeated 0 times
_NOT_VERBATIM = re.compile(r"\\.|\[[^]]*\]|\(.*\)|.?[?*]|.?\{[^}]*\}|[\^$.+]", re.DOTALL)


@dataclass(frozen=True)
class Label:
    """What a name says of a kernel.

    Attributes:
        category: one of CATEGORIES; "other" where no rule knows the name.
        rule: the id of the rule that decided, "" for none.
        fused_with: what else the kernel does.
        precision: of the operands of a GEMM, one of PRECISIONS; None where the name does not tell.
        backend: which library or compiler the kernel is from; None where the name does not tell.
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
    """A regular expression, with a piece that is in everything it matches: looking for that is many times faster.

    Attributes:
        text: the expression.
        literal: the piece, "" where there is none.
        plain: whether that is all of it.
    """

    text: str
    literal: str
    plain: bool

    def found(self, name: str) -> bool:
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
            any(each.found(name) for each in self.match)
            and all(each.found(name) for each in self.also)
            and not any(each.found(name) for each in self.unless)
        )

    def label(self, name: str) -> Label:
        fused = (category for pattern, categories in self.fused_with if pattern.found(name) for category in categories)
        precision = next((each for pattern, each in self.evidence if pattern.found(name)), None)
        return Label(self.category, self.id, tuple(dict.fromkeys(fused)), precision, self.backend, self.selects)


@cache
def classify(name: str) -> Label:
    """The label of a kernel, a copy, a set or an operator of torch, by its name as a profiler wrote it.

    Safe for any string: it takes time in proportion to the name's length up to SEARCHED, and none beyond.
    """
    head = name[:SEARCHED]
    index = _index()
    candidates = sorted({rule for piece in index.keys() & _pieces(head) for rule in index[piece]} | set(index[()]))
    found = next((rule for rule in map(rules().__getitem__, candidates) if rule.fits(head)), None)
    return found.label(head) if found is not None else Label("other", "")


@cache
def rules() -> tuple[Rule, ...]:
    """The rules in their order."""
    text = resources.files("moe_eval.traces").joinpath("taxonomy.toml").read_text(encoding="utf-8")
    table = tomllib.loads(text)
    return tuple(_rule(row, table["evidence"]) for row in table["rule"])


def _pieces(text: str) -> set[tuple[str, ...]]:
    """Every three characters that stand side by side."""
    return set(zip(text, text[1:], text[2:], strict=False))


@cache
def _index() -> dict[tuple[str, ...], list[int]]:
    """From three characters to the rules that can only fit where these are: the rarest ones of a pattern's literal.

    Some hundreds of patterns against a name of a thousand characters would be slow one by one. Rules that any name may
    fit are under the empty tuple.
    """
    literals = [each.literal for rule in rules() for each in rule.match]
    common = Counter(piece for literal in literals for piece in _pieces(literal))
    index: dict[tuple[str, ...], list[int]] = {(): []}
    for number, rule in enumerate(rules()):
        for each in rule.match:
            piece = min(_pieces(each.literal), key=lambda piece: (common[piece], piece), default=())
            index.setdefault(piece, []).append(number)
    return index


def _rule(row: Mapping[str, Any], evidence: Mapping[str, Mapping[str, str]]) -> Rule:
    told = evidence[row["evidence"]] if "evidence" in row else {"": row["precision"]} if "precision" in row else {}
    fused = row.get("fused_with", {})
    fused = fused if isinstance(fused, dict) else {"": fused}
    return Rule(
        row["id"],
        row["category"],
        _patterns(row["match"]),
        _patterns(row.get("also", ())),
        _patterns(row.get("unless", ())),
        tuple((_pattern(text), tuple(categories)) for text, categories in fused.items()),
        tuple((_pattern(text), precision) for text, precision in told.items()),
        row.get("backend"),
        row.get("selects", False),
    )


def _patterns(texts: Iterable[str]) -> tuple[Pattern, ...]:
    return tuple(_pattern(text) for text in texts)


@cache
def _pattern(text: str) -> Pattern:
    plain = not text or _NO_METACHARACTERS.fullmatch(text) is not None
    return Pattern(text, text if plain else _literal(text), plain)


def _literal(text: str) -> str:
    """The longest run of characters that is in everything the expression matches; "" where alternatives are open."""
    runs = _NOT_VERBATIM.sub("\0", text).split("\0")
    return "" if any("|" in run for run in runs) else max(runs, key=len)


@cache
def _finder(text: str) -> Callable[[str], re.Match[str] | None]:
    """Compiled when a name first needs it, as most names need few; an anchored one is tried at the beginning only."""
    compiled = re.compile(text)
    return compiled.match if text.removeprefix("(?s)").startswith("^") else compiled.search
