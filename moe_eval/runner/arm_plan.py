"""Which arms a comparison of precisions has, and which it leaves out and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from moe_eval.checkpoint import contents, precision
from moe_eval.emulation.model import PRECISIONS as EMULATED
from moe_eval.engines import registry
from moe_eval.engines.base import EngineSettings
from moe_eval.errors import UsageError
from moe_eval.machine.hardware import Gpu


@dataclass(frozen=True)
class Arm:
    """One precision of one checkpoint.

    Attributes:
        precision: as it is called in tables and file names; of a checkpoint that holds FP8 in blocks `fp8_block`,
            whichever FP8 was asked for, and with weight-only kernels what they compute in, such as `nvfp4-w4a16`.
    """

    precision: str
    settings: EngineSettings


@dataclass(frozen=True)
class Skip:
    """A precision that is left out, and why."""

    precision: str
    reason: str

    def __str__(self) -> str:
        return f"Skipping {self.precision}: {self.reason}"


@dataclass(frozen=True)
class Asked:
    """What a command was given.

    Attributes:
        paths: checkpoints by `model`, `fp8` and `nvfp4`, None where there is none.
        emulate: compute FP8 and NVFP4 from the one checkpoint `model`, in `scope`; None where the command cannot.
        options: of the engine, for every arm; `settings` other fields of EngineSettings.
    """

    engine: str
    precisions: Sequence[str]
    paths: Mapping[str, str | None]
    emulate: bool | None = False
    scope: str = "experts"
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


def plan(asked: Asked, gpus: Sequence[Gpu]) -> list[Arm | Skip]:
    """The arms in the order asked for.

    Raises:
        UsageError: a precision that does not exist or is named twice, a checkpoint that is not there, or one that holds
            something else than its precision.
    """
    if len(set(asked.precisions)) != len(asked.precisions) or not asked.precisions:
        raise UsageError("--precisions needs names, each of them once.")
    for name in asked.precisions:
        if name not in precision.PRECISIONS:
            raise UsageError(f"There is no precision {name!r}; choose from {', '.join(precision.PRECISIONS)}.")
    if asked.emulate and (asked.paths.get("fp8") or asked.paths.get("nvfp4")):
        raise UsageError(
            "--emulate computes FP8 and NVFP4 from --model_path; leave out --fp8_model_path and --nvfp4_model_path, or "
            "--emulate."
        )
    found = [_planned(asked, name, gpus) for name in asked.precisions]
    names = [each.precision for each in found]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"Two of --precisions {','.join(asked.precisions)} are {name} here; give one of them.")
    return found


def _planned(asked: Asked, name: str, gpus: Sequence[Gpu]) -> Arm | Skip:
    plain = name in precision.DTYPE_OF
    emulated = asked.emulate and name in EMULATED
    key = "model" if plain or emulated else name.removesuffix("_block")
    path = asked.paths.get(key)
    if path is None:
        flag = "--model_path" if key == "model" else f"--{key}_model_path"
        other = "" if plain or asked.emulate is None else ", or --emulate"
        return Skip(name, f"no checkpoint of it was named (give {flag}{other})")
    options = dict(asked.options)
    held = runs = name
    if emulated:
        options |= {"emulate": True, "scope": asked.scope}
    if key == "model":
        contents.local_folder(path)
    else:
        held = _held(path, name, registry.named(asked.engine))
        if asked.engine == "transformers":
            other = "" if asked.emulate is None else "--emulate, or "
            return Skip(held, f"the transformers engine does not run it natively (give {other}another --engine)")
    if not emulated and asked.engine != "transformers":
        backend = options.get("moe_backend")
        chosen = None if backend in (None, "auto") else str(backend)
        runs = precision.executed(held, chosen)
        for gpu in gpus[:1]:
            reason = precision.why_not(asked.engine, runs, gpu.sm, chosen)
            if reason:
                return Skip(held, reason)
    return Arm(runs, EngineSettings(checkpoint=path, precision=held, options=options, **asked.settings))


def _held(path: str, name: str, engine: registry.EngineKind) -> str:
    """The quantised precision that a checkpoint holds, or gets while this engine loads it; FP8 of either kind answers
    to `fp8`."""
    carried = contents.carried(contents.settings_folder(path))
    if carried.precision == name or (name == "fp8" and carried.precision == "fp8_block"):
        return str(carried.precision)
    if carried.method == "none" and name in engine.quantises:
        return name
    found = carried.precision if carried.method == "none" else carried.method
    raise UsageError(f"{path} was given for {name} and holds {found}; give a checkpoint that holds {name}.")
