"""Which arms a comparison of precisions has, and which it leaves out and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moe_eval.checkpoint import contents, precision
from moe_eval.emulation import PRECISIONS as EMULATED
from moe_eval.engines import registry
from moe_eval.engines.base import EngineSettings
from moe_eval.errors import UsageError
from moe_eval.machine.hardware import Gpu
from moe_eval.records.run import Skipped
from moe_eval.runner.request import ArmsRequest


@dataclass(frozen=True)
class Arm:
    """One checkpoint with its settings.

    Attributes:
        name: unique in a run.
        precision: as it is called in tables and file names. Of a checkpoint that holds FP8 in blocks it is `fp8_block`,
            whichever FP8 was named. With weight-only kernels it is what they compute in, such as `nvfp4-w4a16`.
    """

    name: str
    precision: str
    settings: EngineSettings


def plan(request: ArmsRequest, gpus: Sequence[Gpu]) -> list[Arm | Skipped]:
    """The arms in the order of the request.

    Raises:
        UsageError: a precision that does not exist or is named twice, a checkpoint that is not there, or one that holds
            something else than its precision.
    """
    if len(set(request.precisions)) != len(request.precisions) or not request.precisions:
        raise UsageError("--precisions names nothing, or a name twice. Give each name once.")
    for name in request.precisions:
        if name not in precision.PRECISIONS:
            raise UsageError(f"There is no precision {name!r}. Choose from {', '.join(precision.PRECISIONS)}.")
    if request.emulate and (request.paths.get("fp8") or request.paths.get("nvfp4")):
        raise UsageError(
            "--emulate computes FP8 and NVFP4 from --model_path. Leave out --fp8_model_path and --nvfp4_model_path, or "
            "--emulate."
        )
    planned = [_planned(request, name, gpus) for name in request.precisions]
    names = [entry.arm if isinstance(entry, Skipped) else entry.name for entry in planned]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"Two of --precisions {','.join(request.precisions)} are {name} here. Give one of them.")
    return planned


def _planned(request: ArmsRequest, name: str, gpus: Sequence[Gpu]) -> Arm | Skipped:
    plain = name in precision.DTYPE_OF
    emulated = bool(request.emulate) and name in EMULATED
    key = "model" if plain or emulated else name.removesuffix("_block")
    path = request.paths.get(key)
    if path is None:
        flag = "--model_path" if key == "model" else f"--{key}_model_path"
        alternative = "" if plain or request.emulate is None else ", or --emulate"
        return Skipped(name, None, f"no checkpoint of it was named (give {flag}{alternative})")
    if key == "model":
        contents.local_folder(path)
        if emulated:
            return _arm(request, path, name, name, emulate=True, scope=request.scope)
        return _native(request, path, name, gpus)
    held = _held(path, name, registry.named(request.engine))
    if request.engine == "transformers":
        alternative = "" if request.emulate is None else "--emulate, or "
        reason = f"the transformers engine does not run it natively (give {alternative}another --engine)"
        return Skipped(held, None, reason)
    return _native(request, path, held, gpus)


def _native(request: ArmsRequest, path: str, held: str, gpus: Sequence[Gpu]) -> Arm | Skipped:
    """An arm whose kernels compute in its precision, unless the first GPU or the installed version has none that do."""
    if request.engine == "transformers":
        return _arm(request, path, held, held)
    engine = registry.named(request.engine)
    method = contents.carried(contents.settings_folder(path)).method
    unreadable = engine.why_unreadable(method)
    if unreadable:
        return Skipped(held, None, f"it is quantised as {method}, which {unreadable.rstrip('.')}")
    backend = request.options.get("moe_backend")
    chosen = None if backend in (None, "auto") else str(backend)
    executed = precision.executed(held, chosen)
    version = engine.version
    # without a named implementation it is the version's own choice that has to run
    checked = chosen or ("AUTO" if version else None)
    for gpu in gpus[:1]:
        reason = precision.why_not(request.engine, executed, gpu.sm, checked, version)
        if reason:
            return Skipped(held, None, reason)
    return _arm(request, path, held, executed)


def _arm(request: ArmsRequest, path: str, held: str, executed: str, **options: object) -> Arm:
    every = {**request.options, **options}
    return Arm(executed, executed, EngineSettings(checkpoint=path, precision=held, options=every, **request.settings))


def _held(path: str, name: str, engine: registry.EngineKind) -> str:
    """The quantised precision that a checkpoint holds, or gets while this engine loads it.

    FP8 of either kind answers to `fp8`.
    """
    carried = contents.carried(contents.settings_folder(path))
    if carried.precision == name or (name == "fp8" and carried.precision == "fp8_block"):
        return str(carried.precision)
    if carried.method == "none" and name in engine.quantises:
        return name
    content = carried.precision if carried.method == "none" else carried.method
    raise UsageError(f"{path} was given for {name} and holds {content}. Give a checkpoint that holds {name}.")
