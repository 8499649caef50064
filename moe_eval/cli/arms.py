"""Arms by name: reads what --arm and `arms` of YAML say, beside what all arms share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from moe_eval.checkpoint import precision
from moe_eval.cli.options import arm_text
from moe_eval.engines import registry, tables
from moe_eval.engines.options import number
from moe_eval.errors import UsageError, no_such
from moe_eval.frozen import frozen
from moe_eval.records.by_arm import REPEAT_SUFFIX
from moe_eval.runner.request import NamedArm, SharedSettings

# settings that are no engine's own
KEYS = ("engine", "checkpoint", "pretrained", "precision", "expert_parallel", "dtype", "revision", "trust_remote_code")
_OF_ENDPOINT = ("model", "precision")
_SHARED = ("device", "tokenizer")  # that all arms have alike
_VARIABLE = "env."
TakeSettings = Callable[[dict[str, object]], SharedSettings]


@frozen
class Common:
    """What all arms have unless they say otherwise.

    Attributes:
        paths: checkpoints by `model`, `fp8` and `nvfp4`.
        options: of the engine. `of_engines`: of arms whose engine takes them. `settings`: of EngineSettings.
        check: what finds an engine by its name, and refuses one that cannot be used.
        take_settings: takes the fields of EngineSettings out of options.
    """

    engine: str
    paths: Mapping[str, str | None]
    options: Mapping[str, object]
    of_engines: Mapping[str, object]
    settings: SharedSettings
    check: Callable[[str], registry.EngineKind]
    take_settings: TakeSettings


def named(texts: Sequence[str], common: Common) -> list[NamedArm]:
    """The arms of these texts.

    Raises:
        UsageError: a text is no arm, a name comes twice, or a setting is not known to the arm's engine.
    """
    arms = [_arm(*arm_text.read(text), common) for text in texts]
    names = [arm.name.lower() for arm in arms]
    doubled = next((arm.name for arm in arms if names.count(arm.name.lower()) > 1), None)
    if repeat := next((arm.name for arm in arms if arm.name.endswith(REPEAT_SUFFIX)), None):
        raise UsageError(f"The name {repeat} is that of an arm measured twice. Leave {REPEAT_SUFFIX} out.")
    if doubled is not None:
        raise UsageError(f"Two arms are called {doubled}, also if capitals count. Give each a name of its own.")
    return arms


def _arm(name: str, given_values: Mapping[str, str], common: Common) -> NamedArm:
    from lm_eval.utils import handle_arg_string

    values: dict[str, object] = {key: handle_arg_string(text) for key, text in given_values.items()}
    engine = str(values.pop("engine", common.engine))
    kind = common.check(engine)
    environment = {key.removeprefix(_VARIABLE): given_values[key] for key in given_values if key.startswith(_VARIABLE)}
    _check_variables(name, engine, environment)
    options = {key: value for key, value in values.items() if not key.startswith(_VARIABLE)}
    if kind.is_endpoint:
        return _endpoint(name, engine, options)
    _check_keys(name, engine, options)
    checkpoint = [options.pop(key) for key in ("checkpoint", "pretrained") if key in options]
    if len(checkpoint) > 1:
        raise UsageError(f"The arm {name} has checkpoint and pretrained, which are one setting. Give one of them.")
    held = options.pop("precision", None) or (name if name in precision.PRECISIONS else None)
    if name in precision.PRECISIONS and held != name:
        raise UsageError(f"The arm {name} has precision={held}. Give it another name.")
    path = str(checkpoint[0]) if checkpoint else _path(str(held), common.paths)
    settings = SharedSettings(**common.settings)
    settings.update(common.take_settings(options))
    accepted = registry.settings_of(engine)
    of_engine = {key: value for key, value in common.of_engines.items() if key in accepted}
    options = {**common.options, **of_engine, **options}
    options = _with_experts(name, options, kind)
    return NamedArm(name, engine, path, None if held is None else str(held), options, settings, environment)


def _endpoint(name: str, engine: str, options: dict[str, object]) -> NamedArm:
    """An arm that is a server. What other arms share is nothing to it."""
    accepted = {*registry.settings_of(engine), *_OF_ENDPOINT}
    for key in options:
        if key.lower().endswith(("key", "token", "secret", "password", "header")):
            raise UsageError(f"A key is no setting of an arm. Leave {key} out of {name}, and set OPENAI_API_KEY.")
        if key not in accepted:
            raise UsageError(no_such("setting", key, accepted, f"A server has {', '.join(sorted(accepted))}."))
    model = options.pop("model", None)
    if model is None:
        raise UsageError(f"The arm {name} names no model of its server. Give model=NAME.")
    stated = options.pop("precision", None) or (name if name in precision.PRECISIONS else None)
    if stated is not None:
        precision.check_name(str(stated))
    return NamedArm(name, engine, str(model), None if stated is None else str(stated), options)


def _check_keys(name: str, engine: str, options: Mapping[str, object]) -> None:
    accepted = {*registry.settings_of(engine), *KEYS}
    for key in options:
        if key in _SHARED:
            raise UsageError(f"The arm {name} has a {key}, which is the same for all arms. Give it in --model_args.")
        if key not in accepted:
            fix = f"The arm {name} is on {engine}: docs/reference/arms.md lists its settings."
            raise UsageError(no_such("setting", key, accepted, fix))


def _check_variables(name: str, engine: str, environment: Mapping[str, str]) -> None:
    known_names = {variable.name: variable for variable in tables.variables()}
    of_engine = [variable.name for variable in known_names.values() if engine in variable.engines]
    for variable in environment:
        if variable not in of_engine:
            fix = f"The arm {name} may set {', '.join(of_engine)}."
            if variable in known_names:
                raise UsageError(f"{variable} means nothing to {engine}. {fix}")
            raise UsageError(no_such("environment variable of an arm", variable, of_engine, fix))


def _path(held: str, paths: Mapping[str, str | None]) -> str:
    """The checkpoint of a precision: one of its own where there is one."""
    path = paths.get(held.removesuffix("_block")) or paths.get("model")
    if path is None:
        raise UsageError("An arm has no checkpoint. Give checkpoint=PATH, or --model_path for all arms.")
    return path


def _with_experts(name: str, options: Mapping[str, object], kind: registry.EngineKind) -> dict[str, object]:
    """The options with `expert_parallel` as the engine calls it.

    A number of GPUs is that of tensor parallelism as well, unless the arm has one: experts are split over the same
    GPUs as the rest.
    """
    options = dict(options)
    size = options.pop("expert_parallel", None)
    if size is None or size is False:
        return options
    if kind.expert_parallel is None:
        raise UsageError(f"{kind.title} has no expert parallelism. Leave expert_parallel out of the arm {name}.")
    if size is not True:
        count = number({"expert_parallel": size}, "expert_parallel") or 1
        tensor = number(options, "tensor_parallel_size")
        if tensor is not None and tensor != count:
            raise UsageError(
                f"The arm {name} has expert_parallel={count} and tensor_parallel_size={tensor}. Give the same number."
            )
        options["tensor_parallel_size"] = count
    experts_over = number(options, "tensor_parallel_size") or 1
    return {**options, kind.expert_parallel: True if kind.is_expert_switch else experts_over}
