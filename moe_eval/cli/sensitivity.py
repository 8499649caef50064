"""`moe-eval sensitivity`: what quantising the experts of every layer alone costs, and which layers keep a bound."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import msgspec

from moe_eval.checkpoint import shipped
from moe_eval.cli.options import arm_text
from moe_eval.cli.options.sensitivity import SensitivityOptions
from moe_eval.cli.output import Conclusion
from moe_eval.cli.paths import make_folder
from moe_eval.cli.request import recorded, shared_settings
from moe_eval.engines import registry
from moe_eval.engines.base import EngineSettings
from moe_eval.errors import TrackingError, UsageError
from moe_eval.exits import terminable
from moe_eval.machine import hardware
from moe_eval.records import anonymous, disk
from moe_eval.records.sensitivity import SensitivityRecord
from moe_eval.report import recipe, sensitivity_table
from moe_eval.report.console import print_renderable
from moe_eval.runner import sensitivity
from moe_eval.runner.folder import place
from moe_eval.runner.sensitivity import SensitivityRequest
from moe_eval.tracking import Logged, sensitivity_run

_SET_HERE = ("pretrained", "engine", "precision", "batch_size", "emulate", "scope", "activations")


def run(options: SensitivityOptions) -> Conclusion:
    """Run the subcommand.

    Raises:
        UsageError: the options ask for what cannot be.
        EngineError: the model broke down.
    """
    request = _request(options)
    gpus = hardware.gpus_from(request.settings.device)
    sensitivity.check(request, gpus)
    if options.model_path is None and not options.quiet:
        print(f"moe-eval: {shipped.SHIPPED_NOTE} Give --model_path for yours.", file=sys.stderr)
    make_folder(options.output_dir)
    with terminable():
        record = sensitivity.measure(request, gpus)
    file = options.output_dir / f"sensitivity_{record.precision}_{place(gpus)}.json"
    disk.write_record(file, record)
    recipe_file = _write_recipe(record, file)
    print_renderable(sensitivity_table.render(record))
    logged, failures = _logged(file)
    places = {"Record": file, "Recipe for llm-compressor": recipe_file, "MLflow": logged and logged.describe()}
    print("\n".join(f"{name}: {where}" for name, where in places.items() if where))
    beside = {"recipe": recipe_file, "mlflow": logged and asdict(logged)}
    content = {**msgspec.to_builtins(record), **{name: value for name, value in beside.items() if value}}
    return Conclusion(content, [sensitivity_table.conclusion(record)], failures, 2 if failures else 0)


def _request(options: SensitivityOptions) -> SensitivityRequest:
    arguments = arm_text.model_args(options.model_args)
    for name in _SET_HERE:
        if name in arguments:
            raise UsageError(f"--model_args has {name}, which this command sets itself. Leave it out.")
    checkpoint = options.model_path or str(shipped.SHIPPED)
    tokenizer = str(arguments.pop("tokenizer", checkpoint))
    settings = shared_settings(arguments)
    registry.check_options("transformers", arguments)
    emulated = {**arguments, "emulate": True}
    return SensitivityRequest(
        settings=EngineSettings(checkpoint, precision=options.precision, options=emulated, **settings),
        tokenizer=tokenizer,
        dataset=options.dataset,
        input_len=options.input_len,
        num_chunks=options.num_chunks,
        max_kld=options.max_kld,
        experts=options.experts,
        options=recorded(options),
    )


def _write_recipe(record: SensitivityRecord, file: Path) -> Path | None:
    """Write the recipe, which others read, beside the record. Without one, that of an earlier run goes away."""
    record = anonymous.anonymous(record, anonymous.of_publication([record]))
    target = file.with_name(f"{file.stem}_recipe.yaml")
    lines = [*sensitivity_table.labels(record), sensitivity_table.conclusion(record)]
    text = recipe.recipe(record, "\n".join(lines))
    if text is None:
        with suppress(FileNotFoundError):
            target.unlink()
        return None
    disk.write_text(target, text)
    return target


def _logged(file: Path) -> tuple[Logged | None, list[str]]:
    try:
        return sensitivity_run.log(file), []
    except TrackingError as error:
        return None, [str(error)]
