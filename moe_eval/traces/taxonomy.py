"""The category of a kernel by its name: the first rule of taxonomy.toml that fits decides."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

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


class Pattern(NamedTuple):
    """A regular expression for names.

    Attributes:
        core: the expression as the table has it.
        left, right: what bounds it.
    """

    core: str
    left: str = ""
    right: str = ""

    def fits(self, name: str) -> bool:
        """Looks for a piece of every match before the expression, which is many times faster, and compiles few."""
        return any(piece in name for piece in _literals(self.core)) and _finder(self)(name) is not None


@frozen
class Rule:
    """One of taxonomy.toml, whose head describes its fields. `words` are those of [evidence.words], if it reads any."""

    id: str
    category: str
    match: tuple[Pattern, ...]
    also: tuple[Pattern, ...]
    unless: tuple[Pattern, ...]
    fused_with: tuple[tuple[Pattern, tuple[str, ...]], ...]
    evidence: tuple[tuple[Pattern, str], ...]
    words: tuple[tuple[Pattern, str], ...]
    backend: str | None
    selects: bool

    def admits(self, full: str) -> bool:
        return all(pattern.fits(full) for pattern in self.also) and not any(
            pattern.fits(full) for pattern in self.unless
        )

    def label(self, name: KernelName) -> Label:
        fused = (
            category for pattern, categories in self.fused_with if pattern.fits(name.full) for category in categories
        )
        by_type = (precision for pattern, precision in self.evidence if pattern.fits(name.text))
        by_word = (precision for pattern, precision in self.words if pattern.fits(name.own))
        precision = next(by_type, None) or next(by_word, None)
        return Label(self.category, self.id, tuple(dict.fromkeys(fused)), precision, self.backend, self.selects)


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
    return next((rule for rule, pattern in candidates if pattern.fits(name) and rule.admits(full)), None)


@frozen
class _Index:
    """The patterns of all rules by three characters that are in every match, so that a name meets only a few of them.

    Attributes:
        patterns: in the order of the rules.
        by_piece: places in `patterns` by the three characters. Those without any are under "".
    """

    patterns: tuple[tuple[Rule, Pattern], ...]
    by_piece: Mapping[str, Sequence[int]]

    def numbers(self, name: str) -> list[int]:
        """The places of the patterns that may fit a name, in order."""
        pieces = _pieces(name) | {""}
        return sorted({number for piece in self.by_piece.keys() & pieces for number in self.by_piece[piece]})


@cache
def _index() -> _Index:
    patterns = tuple((rule, pattern) for rule in rules() for pattern in rule.match)
    by_piece: dict[str, list[int]] = {}
    for number, (_, pattern) in enumerate(patterns):
        for literal in _literals(pattern.core):
            by_piece.setdefault(literal[-3:] if len(literal) > 2 else "", []).append(number)
    return _Index(patterns, by_piece)


def _pieces(text: str) -> set[str]:
    return {text[at : at + 3] for at in range(len(text) - 2)}


@frozen
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


@cache
def rules() -> tuple[Rule, ...]:
    """The rules in their order."""
    table = toml.read(Path(__file__).with_name("taxonomy.toml"))
    return tuple(_rule(_Row(**row), table["evidence"]) for row in table["rule"])


def _rule(row: _Row, evidence: Mapping[str, Mapping[str, str]]) -> Rule:
    fused = row.fused_with if isinstance(row.fused_with, Mapping) else {"": row.fused_with}
    precisions = {"": row.precision} if row.precision is not None else {}
    words: Mapping[str, str] = {}
    if row.evidence is not None:
        words = evidence[WORDS]
        precisions = dict(evidence[row.evidence]) if row.evidence != WORDS else {}
    return Rule(
        row.id,
        row.category,
        tuple(map(_of_words, row.match)),
        tuple(map(_of_words, row.also)),
        tuple(map(_of_words, row.unless)),
        tuple((_of_words(text), tuple(categories)) for text, categories in fused.items()),
        tuple((Pattern(text), precision) for text, precision in precisions.items()),
        tuple((_of_words(text), precision) for text, precision in words.items()),
        row.backend,
        row.selects,
    )


@cache
def _of_words(text: str) -> Pattern:
    """A pattern whose letters at either end are those of a whole word. Digits and "_" end a word."""
    left = "(?<![a-z])" if text[:1].isalpha() or text[:1] in ("(", "[") else ""
    right = "(?![a-z])" if text[-1:].isalpha() or text[-1:] in (")", "]", "?", "}") else ""
    return Pattern(text, left, right)


@cache
def _literals(text: str) -> tuple[str, ...]:
    """For each alternative of an expression the longest run of characters that is in every match of it."""
    if text.isidentifier():
        return (text,)
    text = _ESCAPE_OR_SET.sub("\0", text)
    while text != (text := _INNERMOST_GROUP.sub("\0", text)):
        pass
    return tuple(max(_NOT_VERBATIM.sub("\0", part).split("\0"), key=len) for part in text.split("|"))


@cache
def _finder(pattern: Pattern) -> Callable[[str], re.Match[str] | None]:
    """Compiled when a name first needs it, as most need few. An anchored one is tried at the beginning only."""
    compiled = re.compile(f"{pattern.left}(?:{pattern.core}){pattern.right}", re.DOTALL)
    return compiled.match if pattern.core.startswith("^") else compiled.search
