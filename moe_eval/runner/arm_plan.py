"""Which arms a comparison has, and which precisions it leaves out and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field, replace

from moe_eval.checkpoint import contents, precision
from moe_eval.checkpoint.carried import read_carried
from moe_eval.emulation import PRECISIONS as EMULATED
from moe_eval.engines import registry
from moe_eval.engines.base import EngineSettings
from moe_eval.errors import UsageError
from moe_eval.frozen import frozen
from moe_eval.machine.hardware import Gpu
from moe_eval.records import disk
from moe_eval.records.labels import UNKNOWN, ArmSettings, OptionValue
from moe_eval.records.run import Skipped
from moe_eval.runner.request import ArmsRequest, NamedArm


@frozen
class Arm:
    """One checkpoint with its settings.

    Attributes:
        name: unique in a run.
        environment: variables that its process has beside those of the command.
        precision: as it is called in tables and file names. Of a checkpoint that holds FP8 with scales for blocks or
            channels it is `fp8_block` or `fp8_channel`, where FP8 was named. With weight-only kernels it is what they
            compute in, such as `nvfp4-w4a16`.
    """

    name: str
    precision: str
    settings: EngineSettings
    engine: str
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_endpoint(self) -> bool:
        """Whether it is a server that somebody else started."""
        return registry.named(self.engine).is_endpoint

    def is_like(self, arm: Arm) -> bool:
        """Whether both are one arm under two names."""
        return (self.engine, self.settings, self.environment) == (arm.engine, arm.settings, arm.environment)

    def recorded(self, gpus: tuple[int, ...]) -> ArmSettings:
        """Its settings as records have them. `gpus`: where its first load runs."""
        options = {name: _plain(value) for name, value in disk.redact(self.settings.options).items()}
        held = self.settings.precision or self.precision
        return ArmSettings(self.engine, self.settings.checkpoint, held, options, self.environment, gpus)


def _plain(value: object) -> OptionValue:
    if isinstance(value, list):
        return tuple(str(part) if isinstance(part, (list, dict)) else part for part in value)
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)


def refuse(reasons: Mapping[str, str], count: int) -> None:
    """Refuse arms that cannot run. A reason that several share is told once.

    Args:
        reasons: by the arm's name. Empty where all can run.
        count: of all arms.

    Raises:
        UsageError: with every reason.
    """
    sentences = []
    for reason in dict.fromkeys(reasons.values()):
        names = [name for name in reasons if reasons[name] == reason]
        sentences.append(reason if len(names) == count else f"{' and '.join(names)}: {reason}")
    if sentences:
        raise UsageError(" ".join(sentences))


def plan(request: ArmsRequest, gpus: Sequence[Gpu]) -> list[Arm | Skipped]:
    """The arms in the order of the request.

    Raises:
        UsageError: a precision that does not exist or is named twice, a checkpoint that is not there, or one that holds
            something else than its precision. A named arm that cannot run here.
    """
    if request.arms:
        return [*_all_named(request.arms, gpus)]
    if len(set(request.precisions)) != len(request.precisions) or not request.precisions:
        raise UsageError("--precisions names nothing, or a name twice. Give each name once.")
    for name in request.precisions:
        precision.check_name(name)
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


def _all_named(entries: Sequence[NamedArm], gpus: Sequence[Gpu]) -> list[Arm]:
    arms: list[Arm] = []
    reasons: dict[str, str] = {}
    for entry in entries:
        try:
            arms.append(_of_name(entry, gpus))
        except UsageError as error:
            reasons[entry.name] = str(error)
    refuse(reasons, len(entries))
    for index, arm in enumerate(arms):
        for earlier in arms[:index]:
            if arm.is_like(earlier):
                raise UsageError(
                    f"The arms {earlier.name} and {arm.name} are the same. Change one of them, or give --aa to measure "
                    "the first arm twice."
                )
    return arms


def _of_name(entry: NamedArm, gpus: Sequence[Gpu]) -> Arm:
    """A named arm.

    Raises:
        UsageError: why it cannot run here, whatever else does.
    """
    settings = EngineSettings(checkpoint=entry.checkpoint, options=entry.options, **entry.settings)
    if registry.named(entry.engine).is_endpoint:
        stated = entry.precision or UNKNOWN
        return Arm(entry.name, stated, replace(settings, precision=entry.precision), entry.engine, entry.environment)
    contents.local_folder(entry.checkpoint)
    held, executed = _precisions(entry, settings, gpus)
    return Arm(entry.name, executed, replace(settings, precision=held), entry.engine, entry.environment)


def _precisions(entry: NamedArm, settings: EngineSettings, gpus: Sequence[Gpu]) -> tuple[str, str]:
    """What the checkpoint holds or becomes, and what its kernels compute in."""
    folder = contents.settings_folder(entry.checkpoint, settings.revision)
    carried = read_carried(folder)
    requested = entry.precision
    if requested is not None and requested not in precision.PRECISIONS:
        raise UsageError(f"There is no precision {requested!r}. Choose from {', '.join(precision.PRECISIONS)}.")
    if carried.method == "none" and requested is None:
        stored = carried.dtype if settings.dtype == "auto" else settings.dtype
        requested = precision.OF_DTYPE.get(stored or "")
    held = requested or str(carried.precision)
    if entry.engine == "transformers":
        if entry.options.get("emulate") or (held in precision.DTYPE_OF and carried.method == "none"):
            return held, held
        raise UsageError(f"The transformers engine does not run {held} natively. Give emulate=true, or another engine.")
    if held not in precision.DTYPE_OF or carried.method != "none":
        held = _held(entry.checkpoint, held, registry.named(entry.engine))
    executed, reason = _executed(entry.engine, entry.checkpoint, held, entry.options, gpus)
    if reason is not None:
        raise UsageError(f"{held} is {reason}. Give another precision, or another GPU.")
    return held, executed


def _planned(request: ArmsRequest, name: str, gpus: Sequence[Gpu]) -> Arm | Skipped:
    plain = name in precision.DTYPE_OF
    emulated = bool(request.emulate) and name in EMULATED
    key = "model" if plain or emulated else name.partition("_")[0]
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
    executed, reason = _executed(request.engine, path, held, request.options, gpus)
    return _arm(request, path, held, executed) if reason is None else Skipped(held, None, reason)


def _executed(
    engine: str, path: str, held: str, options: Mapping[str, object], gpus: Sequence[Gpu]
) -> tuple[str, str | None]:
    """What a precision's kernels compute in, and why the first GPU or the installed version has none that do."""
    kind = registry.named(engine)
    method = read_carried(contents.settings_folder(path)).method
    unreadable = kind.why_unreadable(method)
    if unreadable:
        return held, f"quantised as {method}, which {unreadable.rstrip('.')}"
    backend = options.get("moe_backend")
    chosen = None if backend in (None, "auto") else str(backend)
    executed = precision.executed(held, chosen)
    # without a named implementation it is the version's own choice that has to run
    checked = chosen or ("AUTO" if kind.version else None)
    reasons = (precision.why_not(engine, executed, gpu.sm, checked, kind.version) for gpu in gpus[:1])
    return executed, next(reasons, None)


def _arm(request: ArmsRequest, path: str, held: str, executed: str, **options: object) -> Arm:
    every = {**request.options, **options}
    settings = EngineSettings(checkpoint=path, precision=held, options=every, **request.settings)
    return Arm(executed, executed, settings, request.engine)


def _held(path: str, name: str, engine: registry.EngineKind) -> str:
    """The quantised precision that a checkpoint holds, or gets while this engine loads it.

    FP8 of any scales answers to `fp8`.
    """
    carried = read_carried(contents.settings_folder(path))
    if carried.precision == name or (name == "fp8" and carried.precision in ("fp8_block", "fp8_channel")):
        return str(carried.precision)
    if carried.method == "none" and name in engine.quantises:
        return name
    content = carried.precision if carried.method == "none" else carried.method
    raise UsageError(f"{path} was given for {name} and holds {content}. Give a checkpoint that holds {name}.")
