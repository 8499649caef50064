"""Files of a folder in one .zip, and back: the same bytes for the same files, and nothing harmful from a stranger."""

from __future__ import annotations

import os
import re
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from moe_eval.errors import UsageError
from moe_eval.outside import files

_TIME = (1980, 1, 1, 0, 0, 0)  # the first that the format has
# what `compare` reads. Other files of an archive stay in it
_READ = re.compile(
    r"(?:(?:perf|ppl|kernels|tasks|serving)_[^/\\]+|(?:perf_|ppl_)?(?:run|comparison))\.json|ppl_[^/\\]+\.npz"
)
_MOST_FILES = 2_000
_LARGEST = 1 << 30  # bytes of one file, and four times as many of all
_RATIO = 200  # by which records and arrays do not shrink. It counts above _FREE
_FREE = 16 << 20


def pack(folder: Path, target: Path) -> None:
    """Write all files of a folder, in the order of their names, whole or not at all."""
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with (
            os.fdopen(handle, "wb") as out,
            zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive,
        ):
            for file in sorted(path for path in folder.rglob("*") if path.is_file()):
                entry = zipfile.ZipInfo(file.relative_to(folder).as_posix(), _TIME)
                entry.create_system, entry.external_attr = 3, (stat.S_IFREG | 0o644) << 16
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, file.read_bytes())
        os.chmod(name, 0o644)
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise


def unpack(source: Path, folder: Path) -> None:
    """Write the records of an archive into a folder.

    Raises:
        UsageError: it is no .zip, is damaged, or holds what `pack` does not write.
    """
    try:
        with files.opened(source, "Give a file of moe-eval export.") as content, zipfile.ZipFile(content) as archive:
            entries = archive.infolist()
            problem = _problem(entries)
            if problem:
                raise UsageError(f"{source} {problem}, so it is no file of moe-eval export. Ask for another one.")
            members = [entry for entry in entries if _READ.fullmatch(entry.filename)]
            if not members:
                raise UsageError(f"{source} holds no records. Give a file of moe-eval export.")
            for entry in members:
                target = folder / entry.filename
                target.write_bytes(archive.read(entry))
                if target.suffix == ".npz":
                    _check_arrays(target, source)
    # what zipfile and zlib raise at damage, at a method that is not there, and at a name that cannot be
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, ValueError, EOFError) as error:
        raise UsageError(f"{source} is damaged, or no .zip ({error}). Ask for it again.") from None


def _check_arrays(file: Path, source: Path) -> None:
    with zipfile.ZipFile(file) as arrays:
        problem = _problem(arrays.infolist())
    if problem:
        raise UsageError(f"{source} has arrays in which one file {problem}. Ask for another one.")


def _problem(entries: Sequence[zipfile.ZipInfo]) -> str | None:
    """What `pack` does not write, in words after the archive's name."""
    return next(_problems(entries), None)


def _problems(entries: Sequence[zipfile.ZipInfo]) -> Iterator[str]:
    if len(entries) > _MOST_FILES:
        yield f"holds more than {_MOST_FILES:,} files"
    if len({entry.filename for entry in entries}) < len(entries):
        yield "holds two files of one name"
    sizes = [entry.file_size for entry in entries]
    if max(sizes, default=0) > _LARGEST or sum(sizes) > 4 * _LARGEST:
        yield f"would take more than {_LARGEST >> 30} GiB a file, or four times as much in all"
    for entry in entries:
        parts = re.split(r"[/\\]", entry.orig_filename)
        if not parts[0] or ":" in parts[0] or ".." in parts or "\0" in entry.orig_filename:
            yield "has a file outside of its folder"
        if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            yield "has a link or a special file"
        if entry.flag_bits & 0x1:
            yield "is encrypted"
        if entry.file_size > max(_FREE, _RATIO * entry.compress_size):
            yield f"has a file that grows more than {_RATIO} times"
