"""Pages of raw WikiText files, against another reading of the same rules."""

from __future__ import annotations

import re
from itertools import accumulate, groupby
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_eval.data import documents
from moe_eval.errors import UsageError

# one equals sign, a space, anything, a space, one equals sign: never two signs side by side at either end
TITLE = re.compile(r"\s*= (?!=)(?:.* )?(?<!= )=\s*")

WORDS = st.text(st.sampled_from("ab=é, "), max_size=8)
BALANCED = st.builds(
    lambda level, title: f" {'= ' * level}{title}{' =' * level} ", st.integers(1, 4), st.sampled_from(["a", "b c", "é"])
)
LINES = st.lists(st.one_of(BALANCED, st.sampled_from(["", " ", " some text . ", " x = y "])), max_size=12)


def pages_by_grouping(text: str) -> list[str]:
    """Number every line by the titles seen so far, and put lines of one number together."""
    lines = text.split("\n")
    numbers = accumulate(TITLE.fullmatch(line) is not None for line in lines)
    groups = groupby(zip(numbers, lines, strict=True), key=lambda pair: pair[0])
    pages = ["\n".join(line for _, line in group) for _, group in groups]
    return [page for page in pages[:-1] if page.strip()] + pages[-1:]


@given(LINES)
def test_pages_are_those_of_another_reading(lines: list[str]) -> None:
    text = "\n".join(lines)
    assert list(documents.split_pages(text)) == pages_by_grouping(text)


@given(st.lists(st.one_of(BALANCED, WORDS), max_size=12))
def test_joined_pages_are_the_text_without_a_blank_preamble(lines: list[str]) -> None:
    text = "\n".join(lines)
    joined = "\n".join(documents.split_pages(text))
    assert text.endswith(joined)
    assert not text.removesuffix(joined).strip()


def test_pages_keep_blank_lines_and_the_end_of_the_file() -> None:
    text = " \n = One = \n \n text\n\n = Two = \n text \n"
    assert list(documents.split_pages(text)) == [" = One = \n \n text\n", " = Two = \n text \n"]
    assert list(documents.split_pages("words\n = One = ")) == ["words", " = One = "], "words before a title are a page"


@pytest.mark.parametrize(
    ("line", "splits"),
    [
        *((line, True) for line in (" = E = mc2 = ", "= a =", " = x == y = ", "\t= Title =\r")),
        *((line, False) for line in (" = = Two = = ", " = = = Three = = = ", " = = = = Four = = = = ")),
        *((line, False) for line in (" a = b ", " = one sided", "one sided = ", "=Title=", " = ")),
    ],
)
def test_titles_split_and_deeper_headings_and_equals_signs_in_text_do_not(line: str, splits: bool) -> None:
    first, rest = " = One = \n text", f"{line}\n text"
    assert list(documents.split_pages(f"{first}\n{rest}")) == ([first, rest] if splits else [f"{first}\n{rest}"])


def test_wikitext_2_has_the_pages_of_the_data_set(monkeypatch: pytest.MonkeyPatch, wikitext: Path) -> None:
    monkeypatch.setenv(documents.VARIABLE, str(wikitext))
    pages = documents.wikitext_local()["test"]["page"]
    assert len(pages) == 62
    assert sum(len(page.encode()) for page in pages) == 1_290_527
    assert sum(len(re.split(r"\s+", page)) for page in pages) == 241_335
    assert list(pages) == pages_by_grouping(wikitext.read_bytes().decode())


def test_shipped_sample_is_long_enough_to_judge_a_set_up() -> None:
    pages = documents.moe_sample()["test"]["page"]
    assert len(pages) >= 12
    assert sum(len(page.encode()) for page in pages) >= 30_000
    assert all(TITLE.fullmatch(page.split("\n")[0]) for page in pages)


def test_carriage_returns_stay_in_the_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "crlf.raw"
    file.write_bytes(" = Öne = \r\n a\rb \r\n".encode())
    monkeypatch.setenv(documents.VARIABLE, str(file))
    assert documents.wikitext_local(unused=1)["test"]["page"][:] == [" = Öne = \r\n a\rb \r\n"]


@pytest.mark.parametrize("value", [None, ""])
def test_variable_unset_is_explained(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv(documents.VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(documents.VARIABLE, value)
    with pytest.raises(UsageError, match=r"MOE_EVAL_WIKITEXT.*moe_sample"):
        documents.wikitext_local()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.raw", None, "does not exist"),
        ("", None, "is a folder"),
        ("empty.raw", b"", "is empty"),
        ("blank.raw", b" \n \n", "is empty"),
        ("latin1.raw", "= Zürich =".encode("latin-1"), "no UTF-8"),
    ],
)
def test_unusable_file_or_folder_is_explained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    monkeypatch.setenv(documents.VARIABLE, str(file))
    with pytest.raises(UsageError, match=message) as caught:
        documents.wikitext_local()
    assert str(file) in str(caught.value)
