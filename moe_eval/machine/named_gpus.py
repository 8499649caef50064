"""GPUs by name, to plan for where there are none."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import msgspec

from moe_eval.errors import UsageError, mended
from moe_eval.frozen import frozen
from moe_eval.machine.hardware import Gpu
from moe_eval.outside import toml


@frozen
class NamedGpu:
    """One row of gpus.toml.

    Attributes:
        name: to be given. `title`: as the driver has it.
        capability: such as `9.0`.
        memory_mib: as nvidia-smi has it.
        is_nominal: whether the memory is of a data sheet.
    """

    name: str
    title: str
    capability: str
    memory_mib: int
    source: str
    is_nominal: bool = False


@cache
def rows() -> tuple[NamedGpu, ...]:
    """The rows of gpus.toml."""
    return tuple(msgspec.convert(toml.read(Path(__file__).with_name("gpus.toml"))["gpu"], list[NamedGpu]))


def named(text: str) -> tuple[Gpu, ...]:
    """GPUs such as `H100` or `8xB200`. The order of a name's parts does not matter, nor what is between them.

    Raises:
        UsageError: the name is not known.
    """
    several = re.fullmatch(r"(\d{1,4})x(.+)", text)
    count, name = (int(several[1]), several[2]) if several else (1, text)
    row = next((row for row in rows() if _parts(row.name) == _parts(name)), None)
    if row is None or count < 1:
        names = [row.name for row in rows()]
        fix = mended(name, names, f"Give one of {', '.join(names)}, or 8xH100 for eight.")
        raise UsageError(f"There is no GPU {text!r} to plan for. {fix}")
    return (Gpu(row.title, row.capability, row.memory_mib << 20, None),) * count


def _parts(name: str) -> frozenset[str]:
    return frozenset(re.split(r"[\s_-]+", name.upper().removeprefix("NVIDIA ")))
