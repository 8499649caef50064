"""Whether arms fit a checkpoint's window and a machine's memory, as far as it can be said before loading."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import psutil

from moe_eval.checkpoint import contents, geometry, precision
from moe_eval.checkpoint.carried import read_carried
from moe_eval.data.workload import Shape
from moe_eval.engines.options import number
from moe_eval.errors import UsageError
from moe_eval.frozen import frozen
from moe_eval.machine.hardware import Gpu
from moe_eval.machine.nvml import Nvml
from moe_eval.records.latency import Capacity
from moe_eval.records.run import Skipped
from moe_eval.runner.arm_plan import Arm

# bytes of one weight of a quantised layer, block scales included (NVFP4: one byte of scale for 16 weights)
_WEIGHT_BYTES = {"fp8": 1.0, "fp8_channel": 1.0, "fp8_block": 1.0, "nvfp4": 0.5 + 1 / 16}
# of formats that only experts are held in
_EXPERT_BYTES = {"mxfp4": 0.5 + 1 / 32, "mxfp8": 1 + 1 / 32}
# what an arm takes beside weights and cache: context, libraries, CUDA graphs, activations of a prefill
_BESIDE_GPU, _BESIDE_CPU = 8 << 30, 1 << 30
_USABLE = 0.97  # drivers and other processes hold the rest
_IDLE_BYTES = 1 << 30  # in use on an idle GPU at most
# engines hand the cache out in blocks, so that every sequence may leave most of one empty
_SLACK_TOKENS = 64
_LEAST_WINDOW = 64  # engines refuse windows of a few tokens
# options with which an arm takes a share of the GPU's memory whatever the others need
_SHARES = ("gpu_memory_utilization", "kv_cache_memory_bytes")
# what an engine splits a model by; context parallelism splits its key-value cache no further here, which errs on the
# safe side
_PARALLEL = (
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "context_parallel_size",
    "prefill_context_parallel_size",
    "data_parallel_size",
)


@frozen
class Need:
    """Bytes of memory that one arm needs on each of its GPUs. None where files and configuration do not say.

    `token` is one token of the key-value cache, and `fix` what makes the need smaller.
    """

    weights: int | None
    cache: int | None
    beside: int
    token: float | None = None
    fix: str = "give smaller or fewer sequences, or use a larger GPU"

    @property
    def total(self) -> int | None:
        """All of it."""
        return None if self.weights is None else self.weights + (self.cache or 0) + self.beside

    def __str__(self) -> str:
        parts = f"{(self.weights or 0) / 2**30:.1f} GiB of weights, {(self.cache or 0) / 2**30:.1f} of key-value cache"
        return f"{parts} and about {self.beside / 2**30:.0f} beside them"


def cache_tokens(shapes: Sequence[Shape]) -> int:
    """Tokens that the key-value cache has to hold for the largest of these shapes."""
    return max((shape.tokens + shape.batch_size * _SLACK_TOKENS for shape in shapes), default=0)


def positions(config: Mapping[str, object]) -> int | None:
    """How many tokens a model can read. None where its configuration does not say."""
    stated = contents.text_config(config).get("max_position_embeddings")
    return stated if isinstance(stated, int) else None


def check_window(name: str, config: Mapping[str, object], shapes: Sequence[Shape]) -> None:
    """Refuse shapes that are longer than the model.

    Raises:
        UsageError: with both lengths.
    """
    limit = positions(config)
    longest = max(shape.input_len + shape.output_len for shape in shapes)
    if limit is not None and longest > limit:
        raise UsageError(
            f"--input_len and --output_len make {longest} tokens and {name} has {limit} positions. Give shorter ones."
        )


def gpu_count(options: Mapping[str, object]) -> int:
    """Over how many GPUs an engine's options spread an arm.

    Raises:
        UsageError: a size that is no whole number above 0.
    """
    return math.prod(number(options, name) or 1 for name in _PARALLEL)


def layer_gpus(options: Mapping[str, object]) -> int:
    """How many of an arm's GPUs share a layer: all but those of other stages of a pipeline."""
    return gpu_count(options) // (number(options, "pipeline_parallel_size") or 1)


def need(folder: Path, runs: str, shapes: Sequence[Shape], options: Mapping[str, object], *, gpu: bool) -> Need:
    """What an arm needs.

    Args:
        folder: the checkpoint's settings, and its weights where it has any.
        runs: the precision that the experts are held in.
        options: of the engine: the parallel sizes, kv_cache_dtype and kv_cache_memory_bytes count.
    """
    config = contents.read_config(folder)
    sizes = geometry.read(config)
    carried = read_carried(folder)
    stored = contents.weight_bytes(folder)
    base = runs.partition("-")[0]  # weight-only kernels hold the same weights
    held = _stored_size(config, stored, sizes)
    plain = _size(precision.DTYPE_OF[base]) if base in precision.DTYPE_OF else held
    # weights in one plain type are converted to the other while they are loaded
    weights = stored * plain // held if stored and carried.method == "none" else stored
    if sizes is not None and (not stored or (carried.method == "none" and base in _WEIGHT_BYTES)):
        # random weights, or weights that the engine quantises while it loads them
        quantised = sizes.params.experts + (0 if base in _EXPERT_BYTES else sizes.params.attention)
        width = {**_WEIGHT_BYTES, **_EXPERT_BYTES}.get(base, plain)
        weights = int(quantised * width + (sizes.params.total - quantised) * plain)
    token, states = None, 0.0
    if sizes is not None:
        cache_dtype = str(options.get("kv_cache_dtype", "auto"))
        cache_width = precision.cache_bytes(cache_dtype if cache_dtype != "auto" else carried.kv_cache or "") or plain
        tensor, pipeline = (number(options, name) or 1 for name in _PARALLEL[:2])
        token = sizes.kv_bytes_per_gpu(cache_width, tensor, pipeline)
        states = sizes.state_bytes(geometry.STATE_WIDTHS[1]) / tensor / pipeline
    sequences = max((shape.batch_size for shape in shapes), default=0)
    cache = None if token is None else int(cache_tokens(shapes) * token + sequences * states)
    required = Need((weights or 0) // gpu_count(options) or None, cache, _BESIDE_GPU if gpu else _BESIDE_CPU, token)
    if str(reserved := options.get("kv_cache_memory_bytes", "")).isdecimal():
        return replace(required, cache=int(str(reserved)), fix="give a smaller kv_cache_memory_bytes")
    return required


def _size(dtype: str) -> int:
    return 4 if dtype == "float32" else 2


def _stored_size(config: Mapping[str, object], stored: int | None, sizes: geometry.Geometry | None) -> int:
    """Bytes of a stored weight; of a configuration that does not state the type, what the files' size comes nearest."""
    dtype = contents.stated_dtype(config)
    if dtype or not stored or sizes is None:
        return _size(dtype or "bfloat16")
    return 4 if stored > 3 * sizes.params.total else 2


def memory(gpus: Sequence[Gpu]) -> int:
    """Bytes that arms may take: what is free of the first GPU, or of the machine where there is none."""
    if not gpus:
        return int(psutil.virtual_memory().available)
    with Nvml.open([gpus[0].uuid]) as nvml:
        used = sum(gpu_bytes or 0 for gpu_bytes in nvml.used_bytes())
    return int(_USABLE * gpus[0].memory_bytes) - used


def free(gpus: Sequence[Gpu]) -> list[int]:
    """Bytes that arms may take of every GPU, or of the machine where there is none."""
    return [memory((gpu,)) for gpu in gpus] or [memory(())]


def _room(free_bytes: Sequence[int], count: int) -> int:
    """The most bytes that each of so many neighbouring GPUs has free."""
    starts = range(max(1, len(free_bytes) - count + 1))
    return max(min(free_bytes[first : first + count]) for first in starts)


def too_large(required: Need, available: int, gpus: Sequence[Gpu] = (), share: float | None = None) -> str | None:
    """Why an arm cannot be loaded here. None where it can, or where nobody can tell.

    Args:
        gpus: of the machine.
        share: of a GPU's memory that the arm takes whatever it needs.
    """
    whole = max((gpu.memory_bytes for gpu in gpus), default=0)
    others = int(_USABLE * whole) - available
    fix, used = required.fix, ""
    if whole and others > _IDLE_BYTES:  # NVML tells what is in use, by whomever
        used = f" ({others / 2**30:.1f} GiB are in use by other programs)"
        fix = "end other programs on the GPU, or choose another one with CUDA_VISIBLE_DEVICES"
    if required.total is not None and required.total > available:
        return f"it needs {required}, and {available / 2**30:.1f} GiB can be used here{used}; {fix}"
    if share is not None and used and share * whole > whole - others:
        return (
            f"gpu_memory_utilization={share:g} asks for {share * whole / 2**30:.1f} GiB, and "
            f"{(whole - others) / 2**30:.1f} GiB are free{used}; {fix}"
        )
    return None


def _share(value: object) -> float | None:
    """A share of memory. None where it is no number, which the engine tells."""
    try:
        return float(str(value))
    except ValueError:
        return None


def folder(arm: Arm) -> Path:
    """The settings of an arm's checkpoint."""
    return contents.settings_folder(arm.settings.checkpoint, arm.settings.revision)


def need_of(arm: Arm, shapes: Sequence[Shape], gpus: Sequence[Gpu]) -> Need:
    """The memory that an arm needs. That of an endpoint is its server's."""
    if arm.is_endpoint:
        return Need(None, None, 0)
    return need(folder(arm), arm.precision, shapes, arm.settings.options, gpu=bool(gpus))


def capacity(arm: Arm, gpus: Sequence[Gpu]) -> Capacity:
    """What the GPUs of an arm have room for when nothing else runs there."""
    required = need_of(arm, (), gpus)
    if required.weights is None or required.token is None or not gpus:
        return Capacity(required.weights, None)
    room = _USABLE * min(gpu.memory_bytes for gpu in gpus) - required.weights - required.beside
    return Capacity(required.weights, max(0, int(room / required.token)))


def fitted(
    planned: Sequence[Arm | Skipped],
    shapes: Sequence[Shape],
    gpus: Sequence[Gpu],
    *,
    are_named: bool = False,
    window: int = 0,
) -> list[Arm | Skipped]:
    """The arms with limits that suit the shapes. One that the memory cannot hold is skipped.

    An emulated arm gets no limits: it runs no shape, and they would only make it slower.

    Args:
        are_named: none of the arms may be left out.
        window: tokens that tasks of the harness read at most, as far as the models can.

    Raises:
        UsageError: a shape is longer than a model's window, or no arm at all fits.
    """
    available = free(gpus)
    arms = [entry for entry in planned if isinstance(entry, Arm)]
    for arm in arms:
        check_window(arm.settings.checkpoint, contents.read_config(folder(arm)), shapes)
    reasons = {
        arm.name: too_large(
            need_of(arm, shapes, gpus),
            _room(available, gpu_count(arm.settings.options)),
            gpus,
            _share(arm.settings.options.get("gpu_memory_utilization")),
        )
        for arm in arms
    }
    if arms and (all(reasons.values()) or (are_named and any(reasons.values()))):
        raise UsageError(" ".join(_unfit(reasons)))
    heaviest = max((contents.weight_bytes(folder(arm)) or 0 for arm in arms), default=0) or None
    entries: list[Arm | Skipped] = []
    for entry in planned:
        if isinstance(entry, Arm) and (reason := reasons[entry.name]):
            entries.append(Skipped(entry.name, None, reason))
        elif isinstance(entry, Skipped) or entry.settings.options.get("emulate"):
            entries.append(entry)
        else:
            entries.append(_limited(entry, shapes, heaviest, window))
    return entries


def _unfit(reasons: Mapping[str, str | None]) -> Iterator[str]:
    """A sentence for every reason why arms do not fit. `reasons`: by the arm's name."""
    for reason in dict.fromkeys(filter(None, reasons.values())):
        names = [name for name in reasons if reasons[name] == reason]
        plural = f"do not fit here: {reason.replace('it needs', 'each needs', 1)}"
        yield f"{' and '.join(names)} {plural if len(names) > 1 else f'does not fit here: {reason}'}."


def _limited(arm: Arm, shapes: Sequence[Shape], heaviest: int | None, window: int) -> Arm:
    """The arm with a window of the longest shape or text, of as many tokens as engines need if it has them."""
    longest = max(shape.input_len + shape.output_len for shape in shapes)
    limit = positions(contents.read_config(folder(arm))) or max(window, _LEAST_WINDOW)
    text = min(window, limit)
    limits = replace(
        arm.settings,
        max_length=max(longest, text, min(_LEAST_WINDOW, limit)),
        batch_size=max(shape.batch_size for shape in shapes),
        kv_tokens=max(cache_tokens(shapes), text and text + _SLACK_TOKENS),
        heaviest_bytes=heaviest,
    )
    return replace(arm, settings=limits)


def takes_share(arm: Arm) -> bool:
    """Whether an arm takes a share of the GPU's memory whatever others need."""
    return any(name in arm.settings.options for name in _SHARES)
