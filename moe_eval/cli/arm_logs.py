"""What arms print while they work, for `--verbose`: they write it into logs of their own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.text import Text

from moe_eval.report.console import say
from moe_eval.runner.folder import LOG

_SECONDS = 0.5  # between two looks


@contextmanager
def followed(arms: Path) -> Iterator[None]:
    """Repeat on standard error what arms add to their logs, until the context ends.

    Args:
        arms: the folder that has one for every arm.
    """
    places = {file: file.stat().st_size for file in arms.glob(f"*/{LOG}")}  # what another run printed
    ended = threading.Event()
    follower = threading.Thread(target=_follow, args=(arms, places, ended), daemon=True)
    follower.start()
    try:
        yield
    finally:
        ended.set()
        follower.join()


def _follow(arms: Path, places: dict[Path, int], ended: threading.Event) -> None:
    is_last = False
    while not is_last:
        is_last = ended.wait(_SECONDS)
        for file in sorted(arms.glob(f"*/{LOG}")):
            with file.open("rb") as log:
                log.seek(places.get(file, 0))
                added = log.read()
            whole = added if is_last else added[: added.rfind(b"\n") + 1]
            places[file] = places.get(file, 0) + len(whole)
            for line in whole.decode("utf-8", "replace").splitlines():
                say(f"{file.parent.name}: {Text.from_ansi(line).plain}")
