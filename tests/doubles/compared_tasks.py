"""The comparison written by hand, with tasks of the harness: one whose answers flipped, and a perplexity."""

from __future__ import annotations

from dataclasses import replace

from moe_eval.records.comparison import ComparisonRecord
from moe_eval.records.task_comparison import ChangedDocument, Flips, TaskComparison, TaskVerdict
from tests.doubles import compared_arms

HOSTILE = (
    "</pre></details><script>document.title = 'run'</script><img src=x onerror=\"document.title = 'run'\">"
    "[l](javascript:alert(1)) `code` **bold** | @someone #1 {{ 7 * 7 }} \x1b[31m\x07\u202e\x00\n# heading\n"
)


def comparison(text: str = "") -> ComparisonRecord:
    """`text` is at the end of every prompt, target and answer."""
    before = compared_arms.comparison()
    pair = replace(before.pairs[0], tasks=(_choices(text), _pages()))
    return replace(before, pairs=(pair, *before.pairs[1:]))


def _choices(text: str) -> TaskComparison:
    changed = tuple(
        ChangedDocument(
            "arc_easy",
            at,
            0,
            at < 6,
            f"question {at}\nin two lines{text}",
            f"right {at}{text}",
            (f"first {at}{text}", f"second {at}{text}"),
            (f"because of {at}{text}", ""),
            (1.0, 0.0) if at < 6 else (0.0, 1.0),
            (0.5 + at, -0.5) if at < 6 else (-0.5, 0.5 + at),
        )
        for at in range(10)
    )
    row = TaskComparison("arc_easy", "acc,none", True, None, False, True, 200, 0.8, 0.76, 0.0283, 0.0302)
    row = replace(row, difference=-0.04, low=-0.081, high=-0.002, is_share=True, recovery=0.95)
    flips = Flips(14, 6, 200, 0.115)
    return replace(
        row, flips=flips, verdict=TaskVerdict.OPEN, reason="About 310 documents would settle it.", changed=changed
    )


def _pages() -> TaskComparison:
    changed = (ChangedDocument("pages", 3, 0, True, "a page", "a page", ("-20.5", "-22.5"), ("", ""), (-20.5, -22.5)),)
    row = TaskComparison("pages", "word_perplexity,none", True, None, False, False, 14, 20.0, 21.0)
    interval = {"difference": 0.0488, "low": 0.03, "high": 0.07, "error": 0.01, "df": 13.0}
    return replace(row, **interval, is_logarithm=True, recovery=20 / 21, verdict=TaskVerdict.DROPS, changed=changed)  # type: ignore[arg-type]
