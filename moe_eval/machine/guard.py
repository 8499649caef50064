"""Ends processes when the one that started them is gone, also where that one was killed outright.

`python -m moe_eval.machine.guard WATCHED [SESSION]` is a process of its own, so that no blocking call defers it. It
watches a process. With a session it ends what is in that. Else it ends what the watched process has started from then
on until the guard's standard input ended.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator

import psutil

_LOOK_SECONDS = 0.25
_END_SECONDS = 5.0  # that killed processes may take to go
Processes = frozenset[psutil.Process]
_guards: list[subprocess.Popen[bytes]] = []  # they end by themselves


def start(*pids: int) -> subprocess.Popen[bytes]:
    """Start a guard. It ends by itself when it has nothing to guard any more.

    Args:
        pids: of the process that is watched and, where it has one, the session.
    """
    command = [sys.executable, "-m", "moe_eval.machine.guard", *map(str, pids)]
    nothing = subprocess.DEVNULL
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=nothing, stderr=nothing, start_new_session=True)


@contextlib.contextmanager
def started_meanwhile() -> Iterator[None]:
    """Guard what this process starts inside, such as the workers of an engine, for as long as it lives.

    What fails inside has ended what it started.
    """
    guard = start(os.getpid())
    _guards.append(guard)
    assert guard.stdin is not None
    try:
        yield
    except BaseException:
        guard.kill()
        guard.wait()
        raise
    finally:
        with contextlib.suppress(OSError), guard.stdin as opened:  # closed it would be too, but a fork may hold it open
            opened.write(b"\n")


def main(argv: list[str]) -> None:
    """Guard until nothing is left to guard."""
    watched = _process(int(argv[0]))
    tree = _Session(int(argv[1])) if len(argv) > 1 else _Children(watched)
    while _lives(watched):
        if not tree.look():
            return
        time.sleep(_LOOK_SECONDS)
    end = time.monotonic() + _END_SECONDS
    while (members := tree.members()) and time.monotonic() < end:
        for member in members:
            with contextlib.suppress(psutil.Error):
                member.kill()
        time.sleep(_LOOK_SECONDS / 10)


class _Session:
    """The processes of a session, and those below its leader."""

    def __init__(self, session: int) -> None:
        self._session, self._leader = session, _process(session)

    def look(self) -> bool:
        """Whether there is anything to guard."""
        return _lives(self._leader) or bool(self.members())

    def members(self) -> Processes:
        """Those that live."""
        members = set(_below(self._leader))
        for entry in psutil.process_iter():
            with contextlib.suppress(OSError):
                if os.getsid(entry.pid) == self._session:
                    members.add(entry)
        return _living(members)


class _Children:
    """What a process starts until standard input can be read, and all that is below it."""

    def __init__(self, parent: psutil.Process | None) -> None:
        self._parent, self._guard, self._is_open = parent, psutil.Process(), True
        self._members: Processes = frozenset()

    def look(self) -> bool:
        """Whether there is anything to guard."""
        self._is_open = self._is_open and not select.select([sys.stdin], [], [], 0)[0]
        begun = self._guard.create_time()
        children = _below(self._parent, recursive=False) if self._is_open else ()
        young = [child for child in children if child != self._guard and child.create_time() >= begun]
        self._members = self._members.union(young)
        return bool(self.members()) or self._is_open

    def members(self) -> Processes:
        """Those that live. Their parent may be gone, so they are remembered."""
        self._members = _living(self._members.union(*map(_below, self._members)))
        return self._members


def _process(pid: int) -> psutil.Process | None:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid)
    return None


def _lives(entry: psutil.Process | None) -> bool:
    """Whether a process works: one that was killed and that nobody has waited for does not."""
    with contextlib.suppress(psutil.Error):
        return entry is not None and entry.is_running() and entry.status() != psutil.STATUS_ZOMBIE
    return False


def _below(entry: psutil.Process | None, *, recursive: bool = True) -> Processes:
    with contextlib.suppress(psutil.Error):
        return frozenset(entry.children(recursive=recursive)) if entry else frozenset()
    return frozenset()


def _living(entries: Iterable[psutil.Process]) -> Processes:
    return frozenset(filter(_lives, entries))


if __name__ == "__main__":
    main(sys.argv[1:])
