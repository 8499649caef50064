"""Raw WikiText-form files as the documents that lm-evaluation-harness's `wikitext` task scores."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from moe_eval.errors import UsageError
from moe_eval.outside import files

if TYPE_CHECKING:
    from datasets import Dataset

VARIABLE = "MOE_EVAL_WIKITEXT"
SAMPLE = Path(__file__).resolve().parent.parent / "assets" / "moe_sample.raw"


def _starts_page(line: str) -> bool:
    """Whether a line is ` = Title = `. Deeper headings, such as ` = = Heading = = `, start no page."""
    folded = line.replace("= = =", "===").replace("= =", "==").strip()
    return folded.startswith("= ") and folded.endswith(" =")


def split_pages(text: str) -> Iterator[str]:
    """Split a raw WikiText file into pages exactly as `EleutherAI/wikitext_document_level` was made.

    A page holds every line from one title to the next, blank lines and the last newline included. Text before the first
    title is a page if it is not blank, and the last page is one in any case. WikiText-2's test file gives 62 pages of
    1,290,527 bytes in all.
    """
    page: list[str] = []
    for line in text.split("\n"):
        if _starts_page(line):
            whole = "\n".join(page)
            if whole.strip():
                yield whole
            page = []
        page.append(line)
    yield "\n".join(page)


def _read(path: Path) -> dict[str, Dataset]:
    from datasets import Dataset

    # stray carriage returns inside a page stay, as the hub's data set has them
    text = files.read_text(path, "Give a raw WikiText file such as wiki.test.raw.")
    if not text.strip():
        raise UsageError(f"{path} is empty. Give a raw WikiText file such as wiki.test.raw.")
    return {"test": Dataset.from_dict({"page": list(split_pages(text))})}


def wikitext_local(**_: object) -> dict[str, Dataset]:
    """Load the raw file of the variable MOE_EVAL_WIKITEXT as the split `test` with the column `page`.

    Raises:
        UsageError: the variable is not set, or its file cannot be read.
    """
    path = os.environ.get(VARIABLE, "")
    if not path:
        raise UsageError(
            f"wikitext_local needs a raw WikiText file. Set {VARIABLE} to its path (for example wiki.test.raw of "
            "WikiText-2), or give moe_sample in its place, which ships with moe_eval."
        )
    return _read(files.at_home(path))


def moe_sample(**_: object) -> dict[str, Dataset]:
    """Load the sample articles that ship with the package, as the split `test` with the column `page`."""
    return _read(SAMPLE)
