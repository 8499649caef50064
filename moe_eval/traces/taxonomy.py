"""The category of a kernel by its name: the first rule of taxonomy.toml that fits decides."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from moe_eval.frozen import frozen
from moe_eval.outside import toml
from moe_eval.traces import kernel_name
from moe_eval.traces.kernel_name import KernelName

CATEGORIES = tuple(
    """
    expert_gemm attention gate_gemm dense_gemm routing_permute quant_dequant norm rope_kv activation allreduce sampling
    memory elementwise other
    """.split()  # noqa: SIM905
)
WORDS = "words"  # the table of evidence that reads words and not types
PRECISIONS = ("bf16", "fp8", "fp8_block", "nvfp4", "mxfp4", "mxfp8", "w4a16", "w8a16")

# The characters of a name that are read. The longest of vLLM 0.22.1's kernels has 3,338 characters when demangled
# and has its types in the first 1,400, so nothing is lost, and a name of any length costs no more than one of this one.
SEARCHED = 8192

# what may match nothing, or other characters than are written: escapes, sets, and what can be repeated 0 times
_NOT_VERBATIM = re.compile(r"\\.|\[[^]]*\]|.?[?*]|.?\{[^}]*\}|[\^$.+]", re.DOTALL)
_ESCAPE_OR_SET = re.compile(r"\\.|\[[^]]*\]")
_INNERMOST_GROUP = re.compile(r"\([^()]*\)([?*]|\{[^}]*\})?")


@frozen
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


@frozen
class Rule:
    """One of taxonomy.toml, whose head describes its fields."""

    id: str
    category: str
    match: Sequence[str]
    also: Sequence[str] = ()
    unless: Sequence[str] = ()
    fused_with: Sequence[str] | Mapping[str, Sequence[str]] = ()
    precision: str | None = None
    evidence: str | None = None
    backend: str | None = None
    selects: bool = False

    def admits(self, full: str) -> bool:
        return all(_fits(pattern, full) for pattern in self.also) and not any(
            _fits(pattern, full) for pattern in self.unless
        )

    def label(self, name: KernelName) -> Label:
        fused = self.fused_with if isinstance(self.fused_with, Mapping) else {"": self.fused_with}
        found = (category for pattern in fused if _fits(pattern, name.full) for category in fused[pattern])
        precision = self.precision if self.evidence is None else _precision(self.evidence, name)
        return Label(self.category, self.id, tuple(dict.fromkeys(found)), precision, self.backend, self.selects)


def _precision(evidence: str, name: KernelName) -> str | None:
    """By the types in the name as it was written, then by the words of the kernel's own name."""
    tables = _table()["evidence"]
    types = tables[evidence] if evidence != WORDS else {}
    by_type = (types[pattern] for pattern in types if _fits(pattern, name.text, of_words=False))
    by_word = (tables[WORDS][pattern] for pattern in tables[WORDS] if _fits(pattern, name.own))
    return next(by_type, None) or next(by_word, None)


@cache
def classify(name: str) -> Label:
    """The label of a kernel, a copy, a set or an operator of torch, by its name as a profiler wrote it.

    Safe for any string: it takes time in proportion to the name's length up to SEARCHED, and none beyond.
    """
    parsed = kernel_name.parse(name[:SEARCHED])
    rules_of = (_rule_of(form, parsed.full) for form in dict.fromkeys((parsed.identifier, parsed.own)))
    rule = next(filter(None, rules_of), None)
    return rule.label(parsed) if rule is not None else Label("other", "")


def _rule_of(name: str, full: str) -> Rule | None:
    """The first rule that fits. What the identifier of a kernel says goes before what its arguments say."""
    index = _index()
    candidates = (index.patterns[number] for number in index.numbers(name)) if name else ()
    return next((rule for rule, pattern in candidates if _fits(pattern, name) and rule.admits(full)), None)


@frozen
class _Index:
    """The patterns of all rules by three characters that are in every match, so that a name meets only a few of them.

    Attributes:
        patterns: in the order of the rules.
        by_piece: places in `patterns` by the three characters. Those without any are under "".
    """

    patterns: tuple[tuple[Rule, str], ...]
    by_piece: Mapping[str, Sequence[int]]

    def numbers(self, name: str) -> list[int]:
        """The places of the patterns that may fit a name, in order."""
        pieces = _pieces(name) | {""}
        return sorted({number for piece in self.by_piece.keys() & pieces for number in self.by_piece[piece]})


@cache
def _index() -> _Index:
    patterns = tuple((rule, pattern) for rule in _rules() for pattern in rule.match)
    by_piece: dict[str, list[int]] = {}
    for number, (_, pattern) in enumerate(patterns):
        for literal in _literals(pattern):
            by_piece.setdefault(literal[-3:] if len(literal) > 2 else "", []).append(number)
    return _Index(patterns, by_piece)


def _pieces(text: str) -> set[str]:
    return {text[at : at + 3] for at in range(len(text) - 2)}


def _rules() -> Iterator[Rule]:
    """The rules in their order."""
    return (Rule(**row) for row in _table()["rule"])


@cache
def _table() -> dict[str, Any]:
    return toml.read(Path(__file__).with_name("taxonomy.toml"))


def _fits(pattern: str, name: str, *, of_words: bool = True) -> bool:
    """Looks for a piece of every match before the expression, which is many times faster, and compiles few."""
    return any(piece in name for piece in _literals(pattern)) and _finder(pattern, of_words)(name) is not None


@cache
def _literals(text: str) -> tuple[str, ...]:
    """For each alternative of an expression the longest run of characters that is in every match of it."""
    if text.isidentifier():
        return (text,)
    text = _ESCAPE_OR_SET.sub("\0", text)
    while "(" in text:
        text = _INNERMOST_GROUP.sub("\0", text)
    return tuple(max(_NOT_VERBATIM.sub("\0", part).split("\0"), key=len) for part in text.split("|"))


@cache
def _finder(pattern: str, of_words: bool) -> Callable[[str], re.Match[str] | None]:
    """Compiled when a name first needs it, as most need few. An anchored one is tried at the beginning only.

    Letters at either end are those of a whole word, if it is `of_words`. Digits and "_" end a word.
    """
    left = "(?<![a-z])" if of_words and (pattern[:1].isalpha() or pattern[:1] in ("(", "[")) else ""
    right = "(?![a-z])" if of_words and (pattern[-1:].isalpha() or pattern[-1:] in (")", "]", "?", "}")) else ""
    compiled = re.compile(f"{left}(?:{pattern}){right}", re.DOTALL)
    return compiled.match if pattern.startswith("^") else compiled.search
