"""Measures the sensitivity of a model's layers in a process of its own, and makes the record."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone

from moe_eval.checkpoint import contents
from moe_eval.checkpoint.carried import read_carried
from moe_eval.data import scoring_windows
from moe_eval.engines import registry
from moe_eval.engines.base import EngineSettings
from moe_eval.errors import EngineError, UsageError
from moe_eval.frozen import frozen
from moe_eval.machine import hardware
from moe_eval.machine.hardware import Gpu
from moe_eval.records.labels import ArmSettings, EngineFacts, OptionValue, Origin
from moe_eval.records.sensitivity import SensitivityFigures, SensitivityRecord
from moe_eval.runner.arm_plan import Arm
from moe_eval.runner.arm_process import ArmFailed, ArmProcess, Load

_ENGINE = "transformers"


@frozen
class SensitivityRequest:
    """What is measured.

    Attributes:
        settings: of the arm whose experts would all be emulated.
        tokenizer: the folder or hub name.
        experts: how many of every layer are quantised alone as well.
        options: of the command as a record has them, secrets removed.
    """

    settings: EngineSettings
    tokenizer: str
    dataset: str
    input_len: int
    num_chunks: int
    max_kld: float
    experts: int
    options: Mapping[str, OptionValue]


def check(request: SensitivityRequest, gpus: Sequence[Gpu]) -> None:
    """Refuse what cannot be measured, before anything is loaded.

    Raises:
        UsageError: with the reason.
    """
    if not request.max_kld > 0:
        raise UsageError(f"--max_kld {request.max_kld:g} is a bound that nothing keeps. Give nats above 0.")
    scoring_windows.check(request.input_len, request.num_chunks)
    scoring_windows.read_documents(request.dataset)
    checkpoint = request.settings.checkpoint
    folder = contents.settings_folder(checkpoint, request.settings.revision)
    carried = read_carried(folder)
    if carried.method != "none":
        raise UsageError(
            f"{checkpoint} is quantised already ({carried.method}). Give the unquantised checkpoint as --model_path."
        )
    config = contents.text_config(contents.read_config(folder))
    if not any("expert" in name and value for name, value in _settings(config)):
        raise UsageError(f"{checkpoint} is a dense model, without experts. Give a mixture-of-experts model.")
    positions = config.get("max_position_embeddings")
    if isinstance(positions, int) and request.input_len > positions:
        raise UsageError(
            f"--input_len {request.input_len} is longer than the window of {positions} tokens. Give at most "
            f"{positions}."
        )
    registry.check_arm(_ENGINE, request.settings, gpus)


def measure(request: SensitivityRequest, gpus: Sequence[Gpu]) -> SensitivityRecord:
    """Load the model and measure it.

    Raises:
        EngineError: the model's process broke down.
    """
    settings, started = request.settings, datetime.now(timezone.utc).isoformat(timespec="seconds")
    options = {name: value for name, value in settings.options.items() if name not in registry.EMULATION}
    load = Load(_ENGINE, replace(settings, precision=None, options=options), request.tokenizer)
    with ArmProcess(load) as process:
        try:
            labels = process.load()
            figures, facts = process.ask(
                "sensitivity",
                tuple[SensitivityFigures, EngineFacts],
                settings=settings,
                dataset=request.dataset,
                input_len=request.input_len,
                num_chunks=request.num_chunks,
                max_kld=request.max_kld,
                experts=request.experts,
            )
        except ArmFailed as error:
            raise EngineError(f"{settings.checkpoint} was not measured: {error}") from None
    precision = str(settings.precision)
    return SensitivityRecord(
        precision=precision,
        figures=figures,
        started=started,
        labels=replace(labels, engine=facts),
        origin=Origin(
            run_id=uuid.uuid4().hex,
            options=request.options,
            machine=replace(hardware.machine(), gpus=tuple(gpus)),
            versions=hardware.versions(),
            git=hardware.git_state(),
            arm=_arm(precision, settings, gpus),
        ),
    )


def _arm(precision: str, settings: EngineSettings, gpus: Sequence[Gpu]) -> ArmSettings:
    return Arm(precision, precision, settings, _ENGINE).recorded((0,) if gpus else ())


def _settings(config: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """The settings of a configuration and of its sections, with their names."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _settings(value)
        else:
            yield name, value
