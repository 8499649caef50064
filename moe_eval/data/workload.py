"""The fixed prompts and shapes that every arm of a speed comparison runs, frozen by a hash."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import islice

import msgspec
import numpy as np

from moe_eval.errors import UsageError
from moe_eval.frozen import frozen

Prompt = tuple[int, ...]


@frozen
class Shape:
    """How many sequences are generated at once, and how many tokens each of them reads and makes."""

    batch_size: int
    input_len: int
    output_len: int

    @property
    def name(self) -> str:
        """The shape in metric keys, such as `b8_i512_o256`."""
        return f"b{self.batch_size}_i{self.input_len}_o{self.output_len}"

    @property
    def tokens(self) -> int:
        """Tokens read and made, of all sequences together."""
        return self.batch_size * (self.input_len + self.output_len)


@frozen
class Workload:
    """Prompts of token ids and the shapes that run on them.

    Attributes:
        shapes: at least one. All read prompts of the same length.
        pool: as many prompts of input_len ids as the largest batch has sequences. No two are alike, since equal prompts
            would be routed alike and read fewer experts than a real batch.
        source: how the prompts were made.
        vocabulary: every id is below it.
        digest: 16 hexadecimal digits of SHA-256 over shapes and token ids.
    """

    shapes: tuple[Shape, ...]
    pool: tuple[Prompt, ...]
    source: str
    vocabulary: int
    digest: str

    @property
    def input_len(self) -> int:
        """Tokens of every prompt."""
        return self.shapes[0].input_len

    def prompts(self, shape: Shape) -> tuple[Prompt, ...]:
        """The first batch_size prompts. A larger batch contains a smaller one's, so one routing pass serves all.

        Raises:
            UsageError: the shape needs prompts that this workload lacks.
        """
        if shape.input_len != self.input_len or shape.batch_size > len(self.pool):
            raise UsageError(
                f"This workload holds {len(self.pool)} prompts of {self.input_len} tokens, which do not fit "
                f"{shape.name}. Make a workload with that shape."
            )
        return self.pool[: shape.batch_size]

    def to_json(self) -> object:
        """The workload in JSON's types."""
        return msgspec.to_builtins(self)


def from_json(content: object) -> Workload:
    """Read a workload that to_json wrote.

    Raises:
        UsageError: something is missing, or the digest is not that of these shapes and token ids.
    """
    try:
        workload = msgspec.convert(content, Workload)
    except msgspec.ValidationError as error:
        raise UsageError(f"This is not a workload ({error}). Make it again.") from error
    digest = _digest(workload.shapes, workload.pool)
    if digest != workload.digest:
        raise UsageError(
            f"The workload says digest {workload.digest} and its shapes and tokens have {digest}: it was changed by "
            "hand or cut short. Make it again."
        )
    return workload


def shapes(batch_sizes: Sequence[int], input_len: int, output_len: int) -> tuple[Shape, ...]:
    """One shape for every batch size, in the order given.

    Raises:
        UsageError: no batch size, one given twice, or a number below 1.
    """
    if not batch_sizes:
        raise UsageError("There is no batch size to measure. Give at least one, such as 1,8,32.")
    lengths = [("input length in tokens", input_len), ("output length in tokens", output_len)]
    for name, number in [*(("batch size", size) for size in batch_sizes), *lengths]:
        if number < 1:
            raise UsageError(f"The {name} is {number}. Give a number of at least 1.")
    for size, count in Counter(batch_sizes).items():
        if count > 1:
            raise UsageError(f"Batch size {size} is given twice. Give it once.")
    return tuple(Shape(size, input_len, output_len) for size in batch_sizes)


def from_text(
    pages: Sequence[str],
    encode: Callable[[str], Sequence[int]],
    shapes: Sequence[Shape],
    vocabulary: int,
    source: str,
) -> Workload:
    """Prompts of real text: the tokens of all pages as one stream, cut into consecutive slices.

    Args:
        pages: texts as the model reads them (WikiText after the detokeniser).
        encode: text to token ids, without special tokens.
        source: how the text was made, as a label such as `wikitext_local, tokenizer X, slices of 512 tokens`.

    Raises:
        UsageError: too little text, or a token id outside the vocabulary.
    """
    input_len, count = _needs(shapes)
    pool = tuple(islice(_distinct(_slices(pages, encode, input_len, vocabulary)), count))
    if len(pool) < count:
        raise UsageError(
            f"The text gives {len(pool)} different prompts of {input_len} tokens and the largest batch needs {count}. "
            "Give a longer text, smaller batches or shorter prompts."
        )
    return _frozen(shapes, pool, source, vocabulary)


def from_seed(seed: int, shapes: Sequence[Shape], vocabulary: int, special: Collection[int] = ()) -> Workload:
    """Prompts of independent random tokens, uniform over the vocabulary without its special tokens.

    NEP 19 promises the raw stream of NumPy's PCG64 for every platform and version, and not Generator's methods.
    The remainder of 64 bits is uniform to within vocabulary / 2**64.

    Args:
        special: ids that are never drawn.

    Raises:
        UsageError: a negative seed, or too few tokens to make prompts that differ.
    """
    input_len, count = _needs(shapes)
    if seed < 0:
        raise UsageError(f"The seed is {seed}. Give one of at least 0.")
    allowed = np.setdiff1d(np.arange(vocabulary), np.array(sorted(special), dtype=np.int64))
    # a higher power is beyond any batch size
    if not len(allowed) or len(allowed) ** min(input_len, 64) < count:
        raise UsageError(
            f"{len(allowed)} tokens that may be drawn make fewer than {count} different prompts of {input_len}. Give "
            "longer prompts or smaller batches."
        )
    stream = np.random.PCG64(seed)
    rows: dict[Prompt, None] = {}
    while len(rows) < count:
        drawn = stream.random_raw(input_len) % np.uint64(len(allowed))
        rows[tuple(int(token) for token in allowed[drawn.astype(np.int64)])] = None
    return _frozen(shapes, tuple(rows), f"random, seed {seed}", vocabulary)


def _needs(shapes: Sequence[Shape]) -> tuple[int, int]:
    """The length of the prompts, and how many the shapes need."""
    lengths = sorted({shape.input_len for shape in shapes})
    if len(lengths) != 1:
        raise UsageError(f"A workload has prompts of one length, not {lengths or 'none'}. Make one for each length.")
    return lengths[0], max(shape.batch_size for shape in shapes)


def _slices(
    pages: Iterable[str], encode: Callable[[str], Sequence[int]], input_len: int, vocabulary: int
) -> Iterator[Prompt]:
    held: list[int] = []
    for page in pages:
        tokens = encode(page)
        outside = next((token for token in tokens if not 0 <= token < vocabulary), None)
        if outside is not None:
            raise UsageError(
                f"The tokenizer gives token {outside} and the model's vocabulary has {vocabulary}. Give the model's "
                "tokenizer."
            )
        held.extend(tokens)
        whole = len(held) - len(held) % input_len
        for at in range(0, whole, input_len):
            yield tuple(held[at : at + input_len])
        del held[:whole]


def _distinct(prompts: Iterable[Prompt]) -> Iterator[Prompt]:
    """Every prompt once, as soon as it comes, so that a long text is not encoded to its end."""
    earlier: set[Prompt] = set()
    for prompt in prompts:
        if prompt not in earlier:
            earlier.add(prompt)
            yield prompt


def _frozen(shapes: Sequence[Shape], pool: tuple[Prompt, ...], source: str, vocabulary: int) -> Workload:
    return Workload(tuple(shapes), pool, source, vocabulary, _digest(shapes, pool))


def _digest(shapes: Iterable[Shape], pool: Iterable[Prompt]) -> str:
    digest = hashlib.sha256()
    for shape in shapes:
        digest.update(f"{shape.name};".encode())
    for prompt in pool:
        digest.update(f"{','.join(map(str, prompt))};".encode())
    return digest.hexdigest()[:16]
