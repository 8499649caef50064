"""Torch's threads on a computer that other processes share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from moe_eval.machine.cores import FreeCores

_CHOSEN = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


class Threads:
    """Binds the threads of torch's operations to cores that are free.

    Threads of an operation wait for each other and turn while they do: two threads on one free core cost several times
    the work. What the user chose by an environment variable stays.
    """

    def __init__(self) -> None:
        self._cores = None if any(name in os.environ for name in _CHOSEN) else FreeCores()
        self._most = torch.get_num_threads()

    @contextmanager
    def bound(self) -> Iterator[None]:
        """Have `bind` work inside, and no bounds afterwards: what is timed has the same threads always."""
        self._most = torch.get_num_threads()
        try:
            yield
        finally:
            torch.set_num_threads(self._most)

    def bind(self) -> None:
        """Take as many threads as cores are free."""
        if self._cores is not None:
            torch.set_num_threads(min(self._most, self._cores.count()))
