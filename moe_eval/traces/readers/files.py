"""Opens a trace of any kind: says what it is by its content, reads it within bounds, hands it to its reader."""

from __future__ import annotations

import gzip
import re
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Literal, TypeVar

import msgspec

from moe_eval.errors import UsageError
from moe_eval.traces.kernel_table import Trace

Kind = Literal["nsys sqlite", "nsys report", "nsys csv", "torch profiler"]
Document = TypeVar("Document")

LIMIT = 4 << 30  # bytes of JSON; reading them takes about two and a half times as much memory
# Chrome traces shrink 10 to 30 times (those of vLLM 22 to 27 times): a file that shrinks far more is made to do harm
_RATIO, _RATIO_FROM = 200, 64 << 20
_CHUNK = 4 << 20
_HEAD = 1 << 16
_SQLITE, _GZIP, _BOM = b"SQLite format 3\0", b"\x1f\x8b", b"\xef\xbb\xbf"
_READABLE = (
    "read are .nsys-rep, .sqlite and `nsys stats` CSV of Nsight Systems and .json or .json.gz of torch's profiler"
)
_OTHERS = {
    b"\x28\xb5\x2f\xfd": "is compressed with zstd (unpack it with `zstd -d`)",
    b"PK\x03\x04": "is a zip archive (unpack it first)",
    b"\xfd7zXZ\0": "is compressed with xz (unpack it with `xz -d`)",
    b"BZh": "is compressed with bzip2 (unpack it with `bzip2 -d`)",
}
_PERFETTO = (".pftrace", ".perfetto-trace", ".pb")
# what Python and C++ write for numbers that JSON does not have
_NO_NUMBER = re.compile(rb"[:,\[]\s*(-?(?:NaN|Infinity|nan|inf))\s*(?=[,}\]])")


def kind(path: Path) -> Kind:
    """What a file is, by its first bytes, and a report of Nsight Systems by its suffix.

    Raises:
        UsageError: it cannot be opened, or is nothing that is read.
    """
    with _opened(path) as file:
        head = file.read(_HEAD)
    if path.suffix == ".nsys-rep":
        return "nsys report"
    if head.startswith(_SQLITE):
        return "nsys sqlite"
    if head.startswith(_GZIP) or head.removeprefix(_BOM).lstrip()[:1] in (b"{", b"["):
        return "torch profiler"
    if any(_is_header(line) for line in head.splitlines()):
        return "nsys csv"
    what = next((text for magic, text in _OTHERS.items() if head.startswith(magic)), "is no trace that is known here")
    if path.suffix in _PERFETTO:
        what = "is a trace of Perfetto's own format (export the profiler's Chrome trace instead)"
    raise UsageError(f"{path} {what}; {_READABLE}.")


def read(path: Path, *, cpu: bool = False) -> Trace:
    """Read a trace of any kind.

    Args:
        cpu: operators of the CPU instead of kernels; only a trace of torch's profiler has them.

    Raises:
        UsageError: it cannot be read, or holds no such rows.
    """
    found = kind(path)
    if found == "torch profiler":
        from moe_eval.traces.readers import torch_profiler

        return torch_profiler.read(path, cpu=cpu)
    if cpu:
        raise UsageError(f"{path} is of Nsight Systems and has no operators of the CPU; read its kernels instead.")
    if found == "nsys csv":
        from moe_eval.traces.readers import nsys_stats

        return nsys_stats.read(path)
    from moe_eval.traces.readers import nsys

    if found == "nsys sqlite":
        return nsys.read(path)
    from moe_eval.traces.readers import nsys_export

    with tempfile.TemporaryDirectory(prefix="moe-eval-") as folder:
        return nsys.read(nsys_export.to_sqlite(path, Path(folder)))


def read_bytes(path: Path, limit: int = LIMIT) -> bytes:
    """A whole file, unpacked where its first bytes are gzip's. Nothing is read beyond `limit` bytes of content.

    Raises:
        UsageError: it cannot be read, is empty, damaged or larger, or gzip shrank it more than it shrinks a trace.
    """
    with _opened(path) as file:
        packed = file.read(2) == _GZIP
        file.seek(0)
        if packed:
            return b"".join(_unpacked(path, file, limit))
        if path.stat().st_size > limit:
            raise _too_large(path, limit)
        return file.read()


def _unpacked(path: Path, file: IO[bytes], limit: int) -> Iterator[bytes]:
    size = 0
    source = gzip.GzipFile(fileobj=file)
    try:
        while chunk := source.read(_CHUNK):
            size += len(chunk)
            if size > limit:
                raise _too_large(path, limit)
            if size > _RATIO_FROM and size > _RATIO * file.tell():
                raise UsageError(
                    f"{path} unpacks to more than {_RATIO} times its size, which no trace does; it is not read, so "
                    "unpack it yourself if you trust it."
                )
            yield chunk
    except EOFError:
        raise UsageError(f"{path} is cut off: its gzip stream has no end; copy or record it again.") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UsageError(f"{path} is damaged ({error}); copy or record it again.") from None


def _too_large(path: Path, limit: int) -> UsageError:
    return UsageError(
        f"{path} holds more than {limit >> 20} MiB, which is not read; record fewer steps, without stacks and shapes."
    )


def decode_json(
    path: Path, data: bytes, decoder: msgspec.json.Decoder[Document], tolerant: msgspec.json.Decoder[Document]
) -> Document:
    """Decode JSON; NaN and infinities, which JSON does not have and profilers write, become empty texts.

    Args:
        tolerant: decodes what the first decoder refuses.

    Raises:
        UsageError: it is no such document.
    """
    if data.startswith(_BOM):
        data = data[len(_BOM) :]
    try:
        with suppress(msgspec.DecodeError):
            return decoder.decode(data)
        try:
            return tolerant.decode(data)
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            return tolerant.decode(_without_nan(data))
    except msgspec.ValidationError as error:
        raise UsageError(
            f"{path} is JSON but no Chrome trace ({error}); give what export_chrome_trace wrote."
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is broken or cut off ({error}); copy or record it again.") from None


def _without_nan(data: bytes) -> bytes:
    """The same with every such literal outside of texts replaced by an empty text, at equal length."""
    plain = re.sub(rb"\\.", b"__", data, flags=re.DOTALL)
    fixed, quotes, at = bytearray(data), 0, 0
    for found in _NO_NUMBER.finditer(plain):
        start, end = found.span(1)
        quotes += plain.count(b'"', at, start)
        at = start
        if quotes % 2 == 0:
            fixed[start:end] = b'""'.ljust(end - start)
    return bytes(fixed)


def _is_header(line: bytes) -> bool:
    """Whether a line is the header of a CSV of `nsys stats`, of any age."""
    cells = {cell.strip(b' "').partition(b"(")[0].strip() for cell in line.removeprefix(_BOM).split(b",")}
    return b"Name" in cells and not cells.isdisjoint((b"Start", b"Duration", b"Time", b"Total Time"))


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """A file that is there and has content; every failure of the system in one sentence."""
    try:
        if path.exists() and not path.is_file():
            what = "a folder" if path.is_dir() else "no regular file"
            raise UsageError(f"{path} is {what}; give the trace itself.")
        with path.open("rb", buffering=0) as file:
            if not file.read(1):
                raise UsageError(f"{path} is empty; record it again and let the profiler finish writing.")
            file.seek(0)
            yield file
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist; check the path.") from None
    except PermissionError:
        raise UsageError(f"{path} may not be read by this user; change its permissions.") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror or error}); check the file.") from None
