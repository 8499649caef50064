"""Values and files that no tool writes, as hypothesis strategies: wrong types, numbers, nesting, bytes and places."""

from __future__ import annotations

import gzip
import json
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

Step = str | int
Place = tuple[Step, ...]

TEXTS = (
    "",
    " ",
    "0",
    "-1",
    "1e999",
    "nan",
    "1_0",
    "\u0661\u0662",
    "true",
    "null",
    ".",
    "..",
    "/",
    "~nobody/x",
    "a" * 5000,
    "\ud800",
    "\x00",
    "\x1b[31mred\x1b[0m",
    "\u202eabc\u2066",
    "a\nb\r\nc",
    "a\tb|c",
    "<script>alert(1)</script>",
    "{{ 7*7 }}",
    "[bold]x[/bold]",
    "`x`*y*_z_",
    "=1+1",
    "../../etc/passwd",
    "\U0001f600",
    "e\u0301",
    "\ufeff",
    "bf16",
    "fp8",
    "2",
    "b1_i512_o257",
    "none",
    "%s%n",
    "a:b=c,d",
    "NaN",
    "Infinity",
)
NUMBERS = (
    0,
    1,
    -1,
    2,
    7,
    0.5,
    -0.0,
    1e-320,
    1e24,
    1e308,
    float("nan"),
    float("inf"),
    float("-inf"),
    2**31,
    2**53 + 1,
    2**63,
    2**64,
    -(2**63) - 1,
    10**40,
    10**400,
)
# texts of JSON and YAML that no value has: they take the place of a marker
RAW = (
    "9" * 5000,
    "1e999",
    "-1e999",
    "[" * 3000 + "]" * 3000,
    '{"a":' * 3000 + "1" + "}" * 3000,
    "",
    "}",
    "NaN",
    "'",
    "\x00",
)

texts = st.sampled_from(TEXTS) | st.text(max_size=6)
numbers = st.sampled_from(NUMBERS) | st.integers() | st.floats()
raw = st.integers(0, len(RAW) - 1).map("@raw{}@".format)
values: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | texts | numbers | raw | st.sampled_from([[], {}, [[]], [{}], {"": 1}, [None], [1, "a"]])
)


def places(value: Any, at: Place = ()) -> Iterator[Place]:
    """The way to every value of a document, beginning with itself."""
    yield at
    inner = value.items() if isinstance(value, dict) else enumerate(value[:40]) if isinstance(value, list) else ()
    for key, item in inner:
        yield from places(item, (*at, key))


def changed(value: Any, place: Place, change: Any) -> Any:
    """A copy with another value at a place: `change` makes it of the holder, the key and the value that was there."""
    if not place:
        return change(value)
    key, *rest = place
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[key] = changed(value[key], tuple(rest), change)
    return copy


def _at(document: Any, place: Place) -> Any:
    for step in place:
        document = document[step]
    return document


@st.composite
def edited(draw: st.DrawFn, document: Any, all_places: tuple[Place, ...]) -> Any:
    """A document in which one to three values have changed."""
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 3)))):
        place = draw(st.sampled_from(all_places))
        action = draw(st.sampled_from(("replace", "replace", "replace", "delete", "rename", "again", "deeper")))
        try:
            document = _acted(draw, document, place, action)
        except (KeyError, IndexError, TypeError, AttributeError):
            continue  # an earlier change took the place away
    return document


def _acted(draw: st.DrawFn, document: Any, place: Place, action: str) -> Any:
    if action == "replace" or not place:
        value = draw(values)
        return changed(document, place, lambda _: value)
    if action == "deeper":
        return changed(document, place, lambda value: [value])
    holder, key = place[:-1], place[-1]
    name = draw(texts)
    if not isinstance(key, int) and not isinstance(_at(document, holder), dict):
        return document

    def act(value: Any) -> Any:
        if isinstance(value, list):
            return (
                [*value, value[int(key)]] if action == "again" else [item for at, item in enumerate(value) if at != key]
            )
        rest = {other: item for other, item in value.items() if other != key}
        return rest if action == "delete" else {**(value if action == "again" else rest), name: value[key]}

    return changed(document, holder, act)


def written(document: Any) -> bytes:
    """A document as JSON, with what JSON does not have in the place of markers."""
    text = json.dumps(document)
    for number, content in enumerate(RAW):
        text = text.replace(f'"@raw{number}@"', content)
    return text.encode("utf-8", "surrogatepass")


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:  # noqa: PLR0911
    """Bytes that were cut, turned or written in another encoding."""
    kind = draw(
        st.sampled_from(
            ("cut", "turned", "inserted", "mark", "utf-16", "latin-1", "empty", "twice", "gzip", "half gzip")
        )
    )
    if kind == "cut":
        return content[: draw(st.integers(0, len(content)))]
    if kind == "turned":
        copy = bytearray(content or b"0")
        for _ in range(draw(st.integers(1, 4))):
            copy[draw(st.integers(0, len(copy) - 1))] = draw(st.integers(0, 255))
        return bytes(copy)
    if kind == "inserted":
        at = draw(st.integers(0, len(content)))
        return (
            content[:at]
            + draw(
                st.sampled_from((b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"\\ud800", b"1e999", b"\x1b[2J", b"[[", b"'"))
            )
            + content[at:]
        )
    if kind == "mark":
        return b"\xef\xbb\xbf" + content
    if kind in ("utf-16", "latin-1"):
        return content.decode("utf-8", "replace").encode(kind, "replace") + (b"\xe9" if kind == "latin-1" else b"")
    if kind == "gzip":
        return gzip.compress(content, 1)
    if kind == "half gzip":
        packed = gzip.compress(content, 1)
        return packed[: draw(st.integers(0, len(packed)))]
    return b"" if kind == "empty" else content * 2


SPECIAL = (
    "fifo",
    "socket",
    "folder",
    "dangling link",
    "circle",
    "device",
    "full device",
    "link to a folder",
    "absent",
    "name too long",
)


def special(file: Path, kind: str) -> None:
    """Put something in the place of a file that is none."""
    file.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "socket":
        before = Path.cwd()
        os.chdir(file.parent)  # the path of a socket is short
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(file.name)
        os.chdir(before)
    elif kind == "folder":
        file.mkdir()
    elif kind == "absent":
        return
    else:
        target = {"circle": file.name, "device": "/dev/zero", "full device": "/dev/full", "link to a folder": "."}
        file.symlink_to(target.get(kind, "n" * 300 if kind == "name too long" else "nothing"))


def apply(file: Path, change: bytes | str) -> None:
    """Write what a file holds, or put something else there."""
    if isinstance(change, bytes):
        file.unlink(missing_ok=True)  # it may be a link to what others read
        file.write_bytes(change)
    else:
        special(file, change)


Changes = Mapping[str, bytes | str]
