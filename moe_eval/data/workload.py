"""The fixed prompts and shapes that every arm of a speed comparison runs, frozen by a hash."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np

from moe_eval.errors import UsageError

Prompt = tuple[int, ...]


@dataclass(frozen=True)
class Shape:
    """How many sequences are generated at once, and how many tokens each reads and makes."""

    batch_size: int
    input_len: int
    output_len: int

    @property
    def name(self) -> str:
        """As metric keys spell it, such as `b8_i512_o256`."""
        return f"b{self.batch_size}_i{self.input_len}_o{self.output_len}"

    @property
    def tokens(self) -> int:
        """Tokens read and made, of all sequences together."""
        return self.batch_size * (self.input_len + self.output_len)


@dataclass(frozen=True)
class Workload:
    """Prompts of token ids and the shapes that are run on them.

    Attributes:
        shapes: at least one; all read prompts of the same length.
        pool: as many prompts as the largest batch has sequences, each of input_len ids, no two alike: equal prompts
            would be routed alike and read fewer experts than a batch of that size does.
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
        """The first batch_size prompts: a larger batch holds a smaller one's, so one routing pass serves them all.

        Raises:
            UsageError: the shape needs prompts that this workload lacks.
        """
        if shape.input_len != self.input_len or shape.batch_size > len(self.pool):
            raise UsageError(
                f"This workload holds {len(self.pool)} prompts of {self.input_len} tokens, which {shape.name} does not "
                "fit; make a workload with that shape."
            )
        return self.pool[: shape.batch_size]

    def to_json(self) -> dict[str, Any]:
        """As a plain dictionary of JSON's types."""
        return {**asdict(self), "shapes": [asdict(each) for each in self.shapes], "pool": [list(p) for p in self.pool]}


def from_json(raw: Mapping[str, Any]) -> Workload:
    """Read what to_json wrote.

    Raises:
        UsageError: something is missing, or the digest is not that of these shapes and token ids.
    """
    try:
        shapes = tuple(Shape(**{key: int(value) for key, value in each.items()}) for each in raw["shapes"])
        pool = tuple(tuple(int(token) for token in prompt) for prompt in raw["pool"])
        found = Workload(shapes, pool, str(raw["source"]), int(raw["vocabulary"]), str(raw["digest"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"This is not a workload ({type(error).__name__}: {error}); make it again.") from error
    made = _digest(shapes, pool)
    if made != found.digest:
        raise UsageError(
            f"The workload says digest {found.digest} and its shapes and tokens have {made}; it was changed by hand or "
            "cut short, so make it again."
        )
    return found


def shapes(batch_sizes: Sequence[int], input_len: int, output_len: int) -> tuple[Shape, ...]:
    """One shape for every batch size, in the order given.

    Raises:
        UsageError: no batch size, one given twice, or a number below 1.
    """
    if not batch_sizes:
        raise UsageError("There is no batch size to measure; give at least one, such as 1,8,32.")
    for name, number in [*(("batch size", each) for each in batch_sizes), ("input", input_len), ("output", output_len)]:
        if number < 1:
            unit = "" if name == "batch size" else " length in tokens"
            raise UsageError(f"The {name}{unit} is {number}; give a number of at least 1.")
    twice = next((each for at, each in enumerate(batch_sizes) if each in batch_sizes[:at]), None)
    if twice is not None:
        raise UsageError(f"Batch size {twice} is given twice; give every one once.")
    return tuple(Shape(each, input_len, output_len) for each in batch_sizes)


def from_text(
    pages: Sequence[str],
    encode: Callable[[str], Sequence[int]],
    shapes: Sequence[Shape],
    vocabulary: int,
    source: str,
) -> Workload:
    """Prompts of real text: the tokens of all pages as one stream, cut into consecutive slices.

    Args:
        pages: texts as the model is to read them (of WikiText: detokenised).
        encode: text to token ids, without special tokens.
        source: how the text was made, for labels; such as `wikitext_local, tokenizer X, slices of 512 tokens`.

    Raises:
        UsageError: too little text, or a token id outside the vocabulary.
    """
    input_len, count = _needs(shapes)
    found = tuple(islice(_distinct(_slices(pages, encode, input_len, vocabulary)), count))
    if len(found) < count:
        raise UsageError(
            f"The text gives {len(found)} different prompts of {input_len} tokens and the largest batch needs {count}; "
            "take a longer text, smaller batches or shorter prompts."
        )
    return _frozen(shapes, found, source, vocabulary)


def from_seed(seed: int, shapes: Sequence[Shape], vocabulary: int, special: Collection[int] = ()) -> Workload:
    """Prompts of independent random tokens, uniform over the vocabulary without its special tokens.

    The raw stream of NumPy's PCG64 is used: NEP 19 promises it for every platform and version, which it does not for
    Generator's methods. The remainder of 64 bits is uniform to within vocabulary / 2**64.

    Args:
        special: ids that are never drawn.

    Raises:
        UsageError: a negative seed, or too few tokens to make prompts that differ.
    """
    input_len, count = _needs(shapes)
    if seed < 0:
        raise UsageError(f"The seed is {seed}; give one of at least 0.")
    allowed = np.setdiff1d(np.arange(vocabulary), np.array(sorted(special), dtype=np.int64))
    # powers beyond any batch size need not be computed
    if not len(allowed) or len(allowed) ** min(input_len, 64) < count:
        raise UsageError(
            f"{len(allowed)} tokens that may be drawn make fewer than {count} different prompts of {input_len}; give "
            "longer prompts or smaller batches."
        )
    stream = np.random.PCG64(seed)
    rows: dict[Prompt, None] = {}
    while len(rows) < count:
        drawn = stream.random_raw(input_len) % np.uint64(len(allowed))
        rows[tuple(int(token) for token in allowed[drawn.astype(np.int64)])] = None
    return _frozen(shapes, tuple(rows), f"random, seed {seed}", vocabulary)


def _needs(shapes: Sequence[Shape]) -> tuple[int, int]:
    """The length of the prompts and how many there have to be."""
    lengths = sorted({each.input_len for each in shapes})
    if len(lengths) != 1:
        raise UsageError(f"One workload has prompts of one length, not {lengths or 'none'}; make one for each.")
    return lengths[0], max(each.batch_size for each in shapes)


def _slices(
    pages: Iterable[str], encode: Callable[[str], Sequence[int]], input_len: int, vocabulary: int
) -> Iterator[Prompt]:
    held: list[int] = []
    for page in pages:
        tokens = encode(page)
        outside = next((token for token in tokens if not 0 <= token < vocabulary), None)
        if outside is not None:
            raise UsageError(
                f"The tokenizer gives token {outside} and the model's vocabulary has {vocabulary}; give the tokenizer "
                "that belongs to the model."
            )
        held.extend(tokens)
        whole = len(held) - len(held) % input_len
        for at in range(0, whole, input_len):
            yield tuple(held[at : at + input_len])
        del held[:whole]


def _distinct(prompts: Iterable[Prompt]) -> Iterator[Prompt]:
    """Every prompt once, as soon as it comes: a long text need not be encoded to its end."""
    seen: set[Prompt] = set()
    for prompt in prompts:
        if prompt not in seen:
            seen.add(prompt)
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
