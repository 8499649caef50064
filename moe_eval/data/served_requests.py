"""The requests that every arm's server answers, in their order, and the load points at which they come."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path

import msgspec

from moe_eval.data.workload import Prompt
from moe_eval.errors import UsageError
from moe_eval.frozen import frozen
from moe_eval.outside import files

MOST_USERS = 512  # of a sweep that ends by itself
_NAME = re.compile(r"(?:c(\d+)|r(\d+(?:\.\d+)?(?:e[+-]\d+)?))_")
USER_REQUESTS = 10  # of a user at a point, at least: vLLM's and InferenceX's sweeps send as many


@frozen
class LoadPoint:
    """How requests come: so many users who wait for their answers, or at a mean rate per second (Poisson arrivals)."""

    concurrency: int | None = None
    request_rate: float | None = None

    @property
    def name(self) -> str:
        """Such as `c8`, or `r2.5` for 2.5 requests per second."""
        return f"r{self.request_rate:g}" if self.concurrency is None else f"c{self.concurrency}"

    @property
    def place(self) -> str:
        """Where it is, in words."""
        if self.concurrency is None:
            return f"at {self.request_rate:g} requests per second"
        return f"at {self.concurrency} user{'s' * (self.concurrency != 1)}"

    def requests(self, minimum: int) -> int:
        """How many requests are measured here, at least `minimum`."""
        return max(minimum, USER_REQUESTS * (self.concurrency or 0))

    @property
    def warm_up(self) -> int:
        """How many come before the first measured one, so that the batch is full: as many as there are users."""
        return self.concurrency or 1


@frozen
class Lengths:
    """Tokens that one request reads and makes."""

    input_len: int
    output_len: int


@frozen
class ServedRequest:
    """One request: token ids, and how many tokens are to be made."""

    prompt: Prompt
    output_len: int


@frozen
class RequestSet:
    """Requests in their order. A point takes the first ones.

    Attributes:
        source: how prompts and lengths were made.
        different: prompts before the text begins again.
        digest: 16 hexadecimal digits of SHA-256 over token ids and lengths.
    """

    requests: tuple[ServedRequest, ...]
    source: str
    different: int
    digest: str

    @property
    def longest(self) -> int:
        """Tokens read and made of the longest request."""
        return max(len(request.prompt) + request.output_len for request in self.requests)


def point_of(name: str) -> LoadPoint | None:
    """The load point of a name that begins with its own, such as `c8_i512_o128`. None of another name."""
    match = _NAME.match(name)
    if match is None:
        return None
    return LoadPoint(int(match[1])) if match[1] else LoadPoint(None, float(match[2]))


def sweep() -> tuple[int, ...]:
    """Users of a sweep: powers of two."""
    return tuple(1 << power for power in range(MOST_USERS.bit_length()))


def points(concurrency: Sequence[int], rates: Sequence[float]) -> tuple[LoadPoint, ...]:
    """The load points: users first, by number, then rates.

    Raises:
        UsageError: there is none, one is given twice, or one is no number above 0.
    """
    both = [*(LoadPoint(users) for users in sorted(concurrency)), *(LoadPoint(None, rate) for rate in sorted(rates))]
    if not both:
        raise UsageError("There is no load to serve. Give --concurrency or --request_rate.")
    names = [point.name for point in both]
    for point in both:
        if not (point.concurrency or point.request_rate or 0) > 0:
            raise UsageError("A load point is 0. Give --concurrency and --request_rate above 0.")
        if names.count(point.name) > 1:  # their files would be one
            raise UsageError(f"The load point {point.name} is given twice. Give it once.")
    return tuple(both)


def read_lengths(file: Path) -> tuple[Lengths, ...]:
    """The lengths of requests in a file: JSON lines with input_length and output_length, as in Mooncake's traces.

    The format is that of https://github.com/kvcache-ai/Mooncake (FAST25-release/traces).

    Raises:
        UsageError: the file cannot be read, or a line has no such lengths.
    """
    fix = "Give JSON lines with input_length and output_length."
    rows: list[Lengths] = []
    for number, line in enumerate(files.read_text(file, fix).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = msgspec.json.decode(line, type=_Row)
        except msgspec.DecodeError as error:
            raise UsageError(f"{file} line {number} holds no lengths of a request ({error}). {fix}") from None
        if min(row.input_length, row.output_length) < 1:
            raise UsageError(f"{file} line {number} has a length below 1. {fix}")
        rows.append(Lengths(row.input_length, row.output_length))
    if not rows:
        raise UsageError(f"{file} holds no request. {fix}")
    return tuple(rows)


class _Row(msgspec.Struct):
    """A line of such a file."""

    input_length: int
    output_length: int


def of_stream(tokens: Iterable[int], lengths: Sequence[Lengths], count: int, source: str) -> RequestSet:
    """Requests whose prompts are consecutive slices of a stream of tokens.

    Where the stream ends it begins again, three tokens later each time, so that no prompt comes twice by chance.

    Args:
        lengths: of the first requests, over and over.
        count: how many requests.

    Raises:
        UsageError: the stream is shorter than the longest prompt.
    """
    sizes = list(islice(cycle(lengths), count))
    stream = list(islice(tokens, sum(size.input_len for size in sizes)))
    longest = max(size.input_len for size in sizes)
    if len(stream) < longest:
        raise UsageError(
            f"The text has {len(stream)} tokens and a prompt needs {longest}. Give a longer text or shorter prompts."
        )
    requests, different = [], 0
    for prompt, starts_over, size in _slices(stream, sizes):
        requests.append(ServedRequest(prompt, size.output_len))
        different += not starts_over
    digest = hashlib.sha256()
    for request in requests:
        digest.update(f"{','.join(map(str, request.prompt))}>{request.output_len};".encode())
    return RequestSet(tuple(requests), source, different, digest.hexdigest()[:16])


def _slices(stream: Sequence[int], sizes: Sequence[Lengths]) -> Iterator[tuple[Prompt, bool, Lengths]]:
    """The prompt of every request, and whether the stream has begun again before it."""
    at = rounds = 0
    for size in sizes:
        if at + size.input_len > len(stream):
            rounds += 1
            at = 3 * rounds % (len(stream) - size.input_len + 1)
        yield tuple(stream[at : at + size.input_len]), rounds > 0, size
        at += size.input_len
