"""What a checkpoint's files say before a served engine loads it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from moe_eval.checkpoint import contents, precision
from moe_eval.checkpoint.carried import Carried, read_carried
from moe_eval.engines.base import EngineSettings
from moe_eval.engines.served.package import Traits
from moe_eval.errors import UsageError
from moe_eval.frozen import frozen

# quantisations that the libraries' readers know, by the first word of carried.Carried.method
_READABLE_METHODS = ("none", "fp8", "modelopt", "compressed-tensors")


@frozen
class Model:
    """A checkpoint and how it is to be loaded.

    Attributes:
        name: the folder or the hub's name.
        config: config.json, the settings of the language model itself on the top level.
        precision: what the experts will compute in.
        dtype: torch's name of the type outside quantised layers.
        online: whether the engine quantises the weights while it loads them.
    """

    name: str
    folder: Path
    config: Mapping[str, object]
    carried: Carried
    precision: str
    dtype: str
    online: bool
    weights: Literal["checkpoint", "random"]
    fingerprint: str

    @property
    def architecture(self) -> str:
        """The model class."""
        names: Any = self.config.get("architectures") or ["unknown"]
        return str(next(iter(names)))

    @property
    def positions(self) -> int:
        """The longest sequence that the model supports."""
        return int(str(self.config.get("max_position_embeddings") or 2048))


def read_model(
    traits: Traits, settings: EngineSettings, weights: Literal["checkpoint", "random"] = "checkpoint"
) -> Model:
    """Read what the checkpoint is."""
    local = contents.local_folder(settings.checkpoint)
    folder = contents.settings_folder(settings.checkpoint, settings.revision)
    if local and weights == "checkpoint":
        contents.check_weights(folder)
    carried = read_carried(folder)
    _check_method(traits, settings.checkpoint, carried, weights)
    config = contents.read_config(folder)
    executed, dtype = _precision(traits, settings, carried, carried.dtype)
    # the hub's cache keeps a folder for each commit
    origin = contents.fingerprint(folder) if local else f"{settings.checkpoint}@{folder.name}"
    return Model(
        name=str(local or settings.checkpoint),
        folder=folder,
        config=contents.text_config(config),
        carried=carried,
        precision=executed,
        dtype=dtype,
        online=carried.method == "none" and executed in traits.online,
        weights=weights,
        fingerprint="random weights (weights=random)" if weights == "random" else origin,
    )


def _check_method(traits: Traits, checkpoint: str, carried: Carried, weights: str) -> None:
    if carried.method.split()[0] not in (*_READABLE_METHODS, *traits.inline) or carried.precision is None:
        raise UsageError(
            f"{checkpoint} is quantised as {carried.method}, which moe_eval cannot run on {traits.title}. Give a "
            f"checkpoint in {traits.readable}."
        )
    reason = traits.why_unreadable(carried.method, None)
    if reason is not None:
        raise UsageError(f"{checkpoint} is quantised as {carried.method}, which {reason}")
    if weights == "random" and carried.method != "none":
        raise UsageError(
            f"weights=random starts from 16 bits, and {checkpoint} is quantised ({carried.method}). Give the "
            f"configuration of the BF16 model with precision={carried.precision}."
        )


def _precision(traits: Traits, settings: EngineSettings, carried: Carried, stored: str | None) -> tuple[str, str]:
    """The precision of the experts and the dtype of the rest."""
    requested = settings.precision
    if settings.dtype != "auto" and settings.dtype not in precision.OF_DTYPE:
        raise UsageError(f"dtype={settings.dtype} is not supported. Choose auto, {', '.join(precision.OF_DTYPE)}.")
    dtype = stored if settings.dtype == "auto" else settings.dtype
    if dtype is None:
        raise UsageError(f"Neither settings nor weights of {settings.checkpoint} state a type. Add dtype=bfloat16.")
    executed = str(carried.precision)
    if carried.method == "none":
        if settings.dtype == "auto" and requested in precision.DTYPE_OF:
            dtype = precision.DTYPE_OF[requested]
        executed = precision.OF_DTYPE[dtype]
        if requested is not None and requested in traits.online:
            if executed == "fp32":
                raise UsageError(f"{traits.title} quantises 16-bit weights, and these are {dtype}. Add dtype=bfloat16.")
            return requested, dtype
    if requested not in (None, executed):
        limits = ""
        if traits.online and carried.method != "none":
            limits = f"{traits.title} does not quantise it again, as it is {carried.method}. "
        elif traits.online:
            limits = f"While it loads, {traits.title} quantises it to {' and '.join(traits.online)} only. "
        raise UsageError(
            f"{settings.checkpoint} is {executed}, not precision={requested}. {limits}"
            f"Give a checkpoint in {requested}, or omit precision."
        )
    return executed, dtype
