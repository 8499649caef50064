"""Plays one command in this process and holds what is promised of any input."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from moe_eval.cli import main

PATIENCE = 20  # seconds
# what moves a cursor, colours, or turns the direction of a line
_UNPRINTED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class TooLong(BaseException):
    """A command has used up its time."""


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    code: int
    out: str
    err: str


def _alarm(*_: object) -> None:
    raise TooLong


@contextlib.contextmanager
def limited() -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, _alarm)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def listing(folder: Path) -> dict[str, tuple[int, ...]]:
    """What lies in a folder: kinds, sizes and times, and nothing of what links lead to."""
    entries = {}
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(place, name)
            entry = os.lstat(path)
            # a folder's own time tells of a file that came and went: commands try whether they can write
            times = () if stat.S_ISDIR(entry.st_mode) else (entry.st_mtime_ns, entry.st_size, entry.st_ino)
            entries[os.path.relpath(path, folder)] = (entry.st_mode, *times)
    return entries


@dataclass(frozen=True)
class Stage:
    """A folder of examples: `in` with what a command reads, `out` for what it writes, `tmp` for what it forgets."""

    root: Path

    @contextlib.contextmanager
    def set(self, template: Path | None) -> Iterator[Path]:
        """A fresh stage, with a copy of a template as `in`. It is the working directory meanwhile."""
        root = Path(tempfile.mkdtemp(dir=self.root))
        source = root / "in"
        shutil.copytree(template, source, symlinks=True) if template else source.mkdir()
        (root / "out").mkdir()
        (root / "tmp").mkdir()
        before = Path.cwd()
        os.chdir(source)
        try:
            with mock.patch.object(tempfile, "tempdir", str(root / "tmp")):
                yield root
        finally:
            os.chdir(before)
            shutil.rmtree(root, ignore_errors=True)


def run(words: Sequence[str], stdin: bytes = b"") -> Ended:
    """Run a command with streams as a program has them: what they cannot encode is an error."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors) for errors in ("strict", "backslashreplace"))
    source = io.TextIOWrapper(io.BytesIO(stdin), "utf-8")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), mock.patch.object(sys, "stdin", source):
        try:
            with limited():
                code = main(list(words))
        except SystemExit as end:
            code = end.code
        out.flush()
        err.flush()
    read: Callable[[Any], str] = lambda stream: stream.buffer.getvalue().decode("utf-8")  # noqa: E731
    return Ended(code, read(out), read(err))


def hold(words: Sequence[str], root: Path, stdin: bytes = b"", codes: Sequence[int] = (0, 2)) -> Ended:
    """Run a command on a stage and hold what is promised.

    The exit code is 0 or 2, or another of `codes`. An error is one line that ends as a sentence does. Nothing moves a
    terminal's cursor. JSON is JSON. Nothing has changed but `out`.
    """
    before = {name: listing(root / name) for name in ("in", "tmp")}
    ended = run(words, stdin)
    assert ended.code in codes, f"exit code {ended.code}: {ended.err[-500:]}"
    assert "Traceback" not in ended.err
    lines = ended.err.splitlines()
    # a gate and a verdict have codes too
    if ended.code and not ("--gate" in " ".join(words) or "compare" in words):
        assert lines, "no sentence"
        assert lines[-1].startswith("moe-eval: ")
    if ended.code and lines and lines[-1].startswith("moe-eval: "):
        assert lines[-1][-1] in ".?", lines[-1]
        assert len(lines[-1]) < 1200, lines[-1]
    for text in (ended.out, ended.err):
        unprinted = _UNPRINTED.search(text.replace("\t", " "))
        assert unprinted is None, f"{unprinted!r} in {text[max(0, unprinted.start() - 50) :][:100]!r}"
    if "--json" in words and ended.out:
        json.loads(ended.out, parse_constant=lambda name: (_ for _ in ()).throw(ValueError(name)))
    assert {name: listing(root / name) for name in before} == before
    return ended
