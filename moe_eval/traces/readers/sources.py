"""Opens the file of a trace: which profiler wrote it, by its content, and its bytes within bounds."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import IO

import numpy as np

from moe_eval.errors import UsageError
from moe_eval.outside import files

LIMIT = 4 << 30  # bytes of content. Reading JSON takes about two and a half times as much memory
# Chrome traces shrink 10 to 30 times (those of vLLM 22 to 27 times): a file that shrinks far more is made to do harm
_RATIO, _RATIO_FROM = 200, 64 << 20
_CHUNK = 4 << 20
_HEAD = 1 << 16
_SQLITE, _GZIP, BOM = b"SQLite format 3\0", b"\x1f\x8b", b"\xef\xbb\xbf"
_READABLE = (
    "moe-eval kernels reads .nsys-rep, .sqlite and `nsys stats` CSV of Nsight Systems, and .json or .json.gz of "
    "torch's profiler."
)
_OTHERS = {
    b"\x28\xb5\x2f\xfd": "is compressed with zstd. Unpack it with `zstd -d`",
    b"PK\x03\x04": "is a zip archive. Unpack it",
    b"\xfd7zXZ\0": "is compressed with xz. Unpack it with `xz -d`",
    b"BZh": "is compressed with bzip2. Unpack it with `bzip2 -d`",
}
_PERFETTO = (".pftrace", ".perfetto-trace", ".pb")


class TraceKind(str, Enum):
    """Which profiler wrote a file, in which format."""

    NSYS_SQLITE = "nsys sqlite"
    NSYS_PACKED = "nsys sqlite, packed by gzip"
    NSYS_REPORT = "nsys report"
    NSYS_CSV = "nsys csv"
    TORCH_PROFILER = "torch profiler"


def kind(path: Path) -> TraceKind:
    """The kind of a file, by its first bytes, and of a report of Nsight Systems by its suffix.

    Raises:
        UsageError: it cannot be opened, or is nothing that is read.
    """
    with _opened(path) as file:
        head = file.read(_HEAD)
    if path.suffix == ".nsys-rep":
        return TraceKind.NSYS_REPORT
    if head.startswith(_SQLITE):
        return TraceKind.NSYS_SQLITE
    if head.startswith(_GZIP) and _unpacked_head(head).startswith(_SQLITE):
        return TraceKind.NSYS_PACKED
    if head.startswith(_GZIP) or head.removeprefix(BOM).lstrip()[:1] in (b"{", b"["):
        return TraceKind.TORCH_PROFILER
    from moe_eval.traces.readers import nsys_stats

    if any(nsys_stats.is_header(line) for line in nsys_stats.as_utf8(head).splitlines()):
        return TraceKind.NSYS_CSV
    problem = next((text for magic, text in _OTHERS.items() if head.startswith(magic)), "is no trace that is known")
    if path.suffix in _PERFETTO:
        problem = "is a trace of Perfetto's own format. Export the profiler's Chrome trace"
    raise UsageError(f"{path} {problem}. {_READABLE}")


def read_bytes(path: Path, limit: int = LIMIT) -> memoryview:
    """A whole file, unpacked where its first bytes are gzip's. Nothing is read beyond `limit` bytes of content.

    Raises:
        UsageError: it cannot be read, is empty, damaged or larger, or gzip shrank it more than it shrinks a trace.
    """
    with _opened(path) as file:
        packed = file.read(2) == _GZIP
        file.seek(0)
        if packed:
            content = bytearray()
            for chunk in _unpacked(path, file, limit):
                content += chunk  # joined at the end, all chunks would be there twice
            return memoryview(content)
        size = path.stat().st_size
        if size > limit:
            raise _too_large(path, limit)
        return np.fromfile(file, np.uint8, size).data  # numpy asks for large pages, which the kernel hands out faster


def unpack(path: Path, target: Path) -> Path:
    """Write the content of a gzip file to `target`, which is returned.

    Raises:
        UsageError: as for `read_bytes`.
    """
    with _opened(path) as file, target.open("wb") as out:
        for chunk in _unpacked(path, file, LIMIT):
            out.write(chunk)
    return target


def _unpacked_head(head: bytes) -> bytes:
    """The first bytes of a gzip file's content. Empty where it is damaged."""
    try:
        return zlib.decompressobj(wbits=31).decompress(head, len(_SQLITE))
    except zlib.error:
        return b""


def _unpacked(path: Path, file: IO[bytes], limit: int) -> Iterator[bytes]:
    import gzip

    size = 0
    source = gzip.GzipFile(fileobj=file)
    try:
        while chunk := source.read(_CHUNK):
            size += len(chunk)
            if size > limit:
                raise _too_large(path, limit)
            if size > _RATIO_FROM and size > _RATIO * file.tell():
                raise UsageError(
                    f"{path} unpacks to more than {_RATIO} times its size, which no trace does. Unpack it yourself if "
                    "you trust it."
                )
            yield chunk
    except EOFError:
        raise UsageError(f"{path} is cut off: its gzip stream has no end. Copy or record it again.") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UsageError(f"{path} is damaged ({error}). Copy or record it again.") from None


def _too_large(path: Path, limit: int) -> UsageError:
    return UsageError(
        f"{path} holds more than {limit >> 20} MiB, the most that is read. Record fewer steps, without stacks and "
        "shapes."
    )


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """A file that exists and has content. Every failure of the system becomes one sentence."""
    with files.opened(path, "Give the trace itself.") as file:
        if not file.read(1):
            raise UsageError(f"{path} is empty. Record it again and let the profiler finish writing.")
        file.seek(0)
        yield file
