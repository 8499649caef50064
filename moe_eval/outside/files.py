"""Opens files from outside: regular ones within a size, which never block. Every failure is one sentence."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from moe_eval.errors import UsageError

MOST = 1 << 30  # bytes of a file that is read at once
_KINDS = {
    stat.S_IFDIR: "is a folder",
    stat.S_IFIFO: "is a pipe",
    stat.S_IFSOCK: "is a socket",
    stat.S_IFCHR: "is a device",
    stat.S_IFBLK: "is a device",
}
_PROBLEMS = {
    errno.ENOENT: "does not exist",
    errno.ENOTDIR: "does not exist",
    errno.EACCES: "may not be read by this user",
    errno.ELOOP: "is a link that leads back to itself",
    errno.ENAMETOOLONG: "has a name that is too long",
    errno.ENXIO: "is a socket",
}


def is_there(path: Path) -> bool:
    """Whether anything has this name: also a link to nothing, which is to be told and not passed over."""
    return os.path.lexists(path)


def at_home(path: str | Path) -> Path:
    """A path whose `~` is a user's home. It stays as it is where there is no such user, or no home."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


@contextmanager
def opened(file: Path, fix: str) -> Iterator[BinaryIO]:
    """A regular file, for reading. Errors of reading inside are told too.

    Args:
        fix: the sentence that follows the problem.

    Raises:
        UsageError: it is not there, may not be read, or is a folder, a pipe, a socket or a device.
    """
    try:
        # a pipe that nobody writes to would block here for ever
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as content:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):
                raise UsageError(f"{file} {_KINDS.get(stat.S_IFMT(mode), 'is no regular file')}. {fix}")
            yield content
    except IsADirectoryError:  # of fdopen, before its mode can be looked at
        raise UsageError(f"{file} is a folder. {fix}") from None
    except OSError as error:
        problem = _PROBLEMS.get(error.errno or 0, f"cannot be read ({error.strerror or error})")
        raise UsageError(f"{file} {problem}. {fix}") from None


def read_bytes(file: Path, fix: str, most: int = MOST) -> bytes:
    """The whole content. Errors are as of `opened`, and more bytes than `most`."""
    with opened(file, fix) as content:
        if os.fstat(content.fileno()).st_size > most:
            raise UsageError(f"{file} is larger than {most >> 20} MiB, the most that is read. {fix}")
        return content.read(most)


def read_text(file: Path, fix: str, most: int = MOST) -> str:
    """The whole content as UTF-8, without a byte order mark. Errors are as of `read_bytes`, and another encoding."""
    try:
        return read_bytes(file, fix, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is damaged (it is no UTF-8 from byte {error.start} on). {fix}") from None
