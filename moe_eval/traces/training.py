"""Kernels that only training runs: optimizers and backward passes, by the words in their names."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]

# torch and apex update all parameters with multi_tensor_apply, whatever the optimizer. Inference has no use for it
_OPTIMIZER = frozenset(
    ("adam", "adamw", "adagrad", "adafactor", "lamb", "rmsprop", "sgd", "muon", "optimizer", "multitensorapply")
)
_BACKWARD = frozenset(("backward", "bwd"))
_HINT = "(?i)adam|adagrad|adafactor|lamb|rmsprop|sgd|muon|optimizer|multi_?tensor_?apply|backward|bwd"
_WORD = r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+"
_SEARCHED = 8192  # characters of a name


def optimizers(names: Sequence[str]) -> Mask:
    """Which names are those of optimizers, shape (names,)."""
    return _with(names, _OPTIMIZER)


def backward(names: Sequence[str]) -> Mask:
    """Which names are those of backward passes, shape (names,)."""
    return _with(names, _BACKWARD)


def _with(names: Sequence[str], words: frozenset[str]) -> Mask:
    return np.array([not words.isdisjoint(_words(name[:_SEARCHED])) for name in names], np.bool_)


def _words(name: str) -> set[str]:
    """Words of a name in lower case, at underscores and at capitals: `lambda` is not LAMB."""
    if not re.search(_HINT, name):
        return set()
    return {word.lower() for word in re.findall(_WORD, name.replace("multi_tensor_apply", "multitensorapply"))}
