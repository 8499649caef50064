"""The rates that a device reaches in practice: of copies in its memory and of matrix products."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from functools import partial
from typing import TYPE_CHECKING

from moe_eval.errors import UsageError
from moe_eval.frozen import frozen

if TYPE_CHECKING:
    import torch

_FP8 = "float8_e4m3fn"
_ROUNDS, _TIMES = 4, 5
_LONG_SECONDS = 0.2  # bfloat16 on a CPU without it


@frozen
class Rates:
    """The rates that a device reaches in practice, which are below those of its data sheet.

    Attributes:
        copy_bytes_per_s: of a large copy in its memory. Bytes read and bytes written both count.
        matrix_flops_per_s: of a large square matrix product of random numbers, by torch's name of the factors' type.
        device: the hardware's name.
        gpus: indices of the run's GPUs that were measured, of which the slowest counts. Empty on a CPU.
        link_bytes_per_s: that every GPU of a group sends in a large all-reduce, by the number of GPUs (machine.links).
        no_links: why a group is missing. None where none is.
    """

    copy_bytes_per_s: float
    matrix_flops_per_s: Mapping[str, float]
    device: str
    gpus: tuple[int, ...] = ()
    link_bytes_per_s: Mapping[int, float] = field(default_factory=dict)
    no_links: str | None = None


def measure_rates(device: str) -> Rates:
    """Measure a device's rates in about a second: the best of several medians, after a warm-up.

    Args:
        device: torch's name of it.

    Raises:
        UsageError: the device's memory is nearly full.
    """
    import torch

    where = torch.device(device)
    cuda = where.type == "cuda"
    if cuda and torch.cuda.mem_get_info(where)[0] < 4 << 30:
        raise UsageError(f"Less than 4 GiB of {device} are free. Measure its rates before a model is loaded.")
    # far beyond the last level of cache, and matrices that fill every core
    size, side = (1 << 30, 8192) if cuda else (128 << 20, 512)
    source = torch.ones(size, dtype=torch.uint8, device=where)
    target = torch.empty_like(source)
    copied = 2 * size / _best(partial(target.copy_, source), where)
    del source, target
    products = {}
    for kind in (torch.bfloat16, torch.float16) if cuda else (torch.float32, torch.bfloat16):
        # random, since zeros draw less power and run faster
        a, b = (torch.randn(side, side, device=where).to(kind) for _ in range(2))
        products[str(kind).removeprefix("torch.")] = 2 * side**3 / _best(partial(torch.matmul, a, b), where)
    if cuda and torch.cuda.get_device_capability(where) >= (8, 9):
        seconds = _fp8_seconds(side, where)
        if seconds is not None:
            products[_FP8] = 2 * side**3 / seconds
    if cuda:
        torch.cuda.empty_cache()
    return Rates(copied, products, torch.cuda.get_device_name(where) if cuda else "cpu")


def slowest(measured: Sequence[Rates]) -> Rates:
    """The rates that all of several GPUs, or groups of them, reach. A type or link that one lacks is left out."""
    types = set.intersection(*({*rates.matrix_flops_per_s} for rates in measured))
    counts = {count for rates in measured for count in rates.link_bytes_per_s}
    links = {n: [rates.link_bytes_per_s[n] for rates in measured if n in rates.link_bytes_per_s] for n in counts}
    return Rates(
        min(rates.copy_bytes_per_s for rates in measured),
        {name: min(rates.matrix_flops_per_s[name] for rates in measured) for name in sorted(types)},
        measured[0].device,
        tuple(sorted({gpu for rates in measured for gpu in rates.gpus})),
        {count: min(links[count]) for count in sorted(counts) if len(links[count]) == len(measured)},
        next((rates.no_links for rates in measured if rates.no_links), None),
    )


def _fp8_seconds(side: int, where: torch.device) -> float | None:
    """Seconds of an FP8 product, or None if this torch has none for the device. The function is private to torch."""
    import torch

    a, b = (torch.randn(side, side, device=where).to(torch.float8_e4m3fn) for _ in range(2))
    scale = torch.ones((), device=where)
    try:
        return _best(
            lambda: torch._scaled_mm(a, b.t(), scale, scale, out_dtype=torch.bfloat16, use_fast_accum=True), where
        )
    except (AttributeError, RuntimeError, TypeError):
        return None


def _best(work: Callable[[], object], where: torch.device) -> float:
    """Seconds of one call: the best of several medians, so that neither a disturbance nor a slow start counts.

    A call that takes long is made three times in all: its own time is far more than either.
    """
    work()
    if (seconds := _seconds(work, where)) > _LONG_SECONDS:
        return min(seconds, _seconds(work, where))
    work()
    return min(statistics.median(_seconds(work, where) for _ in range(_TIMES)) for _ in range(_ROUNDS))


def _seconds(work: Callable[[], object], where: torch.device) -> float:
    import torch

    if where.type != "cuda":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    with torch.cuda.device(where):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        first.record()
        work()
        last.record()
        last.synchronize()
        return float(first.elapsed_time(last)) / 1e3
