"""Writes pages of docs/reference: run `python docs/generate.py` after a change.

A test holds that the pages are what this writes.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import ModuleType

from moe_eval import stats
from moe_eval.checkpoint import geometry
from moe_eval.checkpoint.geometry.families import FAMILIES
from moe_eval.cli.options.command_line import Command, default_text
from moe_eval.cli.options.commands import COMMANDS
from moe_eval.cli.options.option import Option, options_of
from moe_eval.data import served_requests, workload
from moe_eval.machine import hardware, rates, sampler
from moe_eval.records import (
    comparison,
    harness,
    kernels,
    labels,
    latency,
    quality,
    ratios,
    run,
    samples,
    sensitivity,
    serving,
    serving_comparison,
    shape_comparison,
    shape_latency,
    task_comparison,
    task_results,
    tasks,
    verdicts,
)

REFERENCE = Path(__file__).resolve().parent / "reference"
_NOTE = "<!-- Written by docs/generate.py: change the dataclasses and run it. -->"
_MODULES = (
    run,
    latency,
    shape_latency,
    samples,
    serving,
    quality,
    sensitivity,
    kernels,
    comparison,
    shape_comparison,
    serving_comparison,
    ratios,
    verdicts,
    task_comparison,
    task_results,
    tasks,
    harness,
    labels,
)
_PARTS = (
    stats.Estimate,
    stats.Divergence,
    hardware.Machine,
    hardware.Gpu,
    sampler.GpuSummary,
    rates.Rates,
    workload.Shape,
    served_requests.LoadPoint,
)
_FILES = {
    "RunRecord": "`run.json`, `perf_run.json`, `ppl_run.json`",
    "LatencyRecord": "`perf_ARM_WHERE.json`",
    "QualityRecord": "`ppl_ARM_WHERE.json`",
    "SensitivityRecord": "`sensitivity_PRECISION_WHERE.json`",
    "ServingRecord": "`serving_ARM_WHERE.json`",
    "KernelsRecord": "`kernels_ARM_WHERE_SHAPE.json`",
    "ComparisonRecord": "`comparison.json`, `perf_comparison.json`, `ppl_comparison.json`",
    "HarnessRecord": "`record.json`",
}


def options_page() -> str:
    """The options of every command."""
    lines = [
        "# Options",
        _NOTE,
        "",
        "Dashes and underscores are the same: `--batch-size` is `--batch_size`. Options stand before or after files.",
        "`--config FILE` reads options from YAML by these names. The command line wins.",
    ]
    for command in COMMANDS.values():
        lines += _command(command)
    return "\n".join(lines) + "\n"


def _command(command: Command) -> Iterator[str]:
    yield from ("", f"## moe-eval {command.name}", "", command.description, "", "```bash")
    for comment, line in command.examples:
        yield from (f"# {comment}", line)
    yield "```"
    group = ""
    for option in options_of(command.options).values():
        if option.group != group:
            group = option.group
            yield from ("", f"### {command.name}: {group}", "", "| option | default | meaning |", "|---|---|---|")
        yield f"| `{_spelled(option)}` | {_code(default_text(option.default))} | {_cell(option.help)} |"


def _spelled(option: Option) -> str:
    value = option.metavar or ("\\|".join(option.choices) if option.choices else "")
    if option.is_positional:
        return value
    return option.label if option.kind is bool else f"{option.label} {value or option.name.upper()}"


def records_page() -> str:
    """The classes of all records."""
    lines = [
        "# Record fields",
        _NOTE,
        "",
        "Every measurement is a frozen dataclass, written as JSON. Units are in the names: `_ms`, `_j`, `_s`, `tok_s`.",
        "ARM is the arm's name, WHERE is `smXY` for the GPU's compute capability or `cpu`, SHAPE is such as",
        "`b8_i512_o256`.",
    ]
    for module in _MODULES:
        for kind in _classes(module):
            lines += _record(kind)
    lines += ["", "## Parts from other modules"]
    for kind in _PARTS:
        lines += _record(kind)
    return "\n".join(lines) + "\n"


def _classes(module: ModuleType) -> list[type]:
    """Dataclasses and enums of a module, records first, then in the order of the source."""
    kinds = [
        kind
        for kind in vars(module).values()
        if isinstance(kind, type)
        and kind.__module__ == module.__name__
        and (is_dataclass(kind) or issubclass(kind, Enum))
    ]
    return sorted(kinds, key=lambda kind: not kind.__name__.endswith("Record"))


def _record(kind: type) -> Iterator[str]:
    text, _, attributes = inspect.cleandoc(kind.__doc__ or "").partition("\n\nAttributes:\n")
    file = f" ({_FILES[kind.__name__]})" if kind.__name__ in _FILES else ""
    yield from ("", f"### {kind.__name__}{file}", "", *text.splitlines(), "")
    if issubclass(kind, Enum):
        yield ", ".join(f"`{member.value}`" for member in kind)
        return
    yield from ("| field | type |", "|---|---|")
    for entry in fields(kind):
        yield f"| `{entry.name}` | `{_cell(str(entry.type))}` |"
    notes = _notes(attributes)
    if notes:
        yield from ("", *(f"- {note}" for note in notes))


_FORMS = REFERENCE.parents[1] / "tests/checkpoint/public_forms.json"
_CHECKPOINTS = """# Checkpoints

<!-- Written by docs/generate.py from tests/checkpoint/public_forms.json: change that file and run it. -->

`moe-eval doctor --checkpoint PATH` says what a checkpoint carries, without any engine.

A checkpoint's precision is that of its routed experts. `hf_quant_config.json` goes before `config.json`.
The headers of safetensors files decide where settings are silent or differ. They refuse a label that they contradict.
A form without a precision is refused by its name when an engine is to run it.

A test reads every form below. Forms are shortened: their lists of modules are cut, and the rest of the model is left
out. Most are written from knowledge of the named source. None was compared with a copy of its checkpoint: ask
`doctor` about yours.

| form | read as | checkpoints | source |
|---|---|---|---|
"""


def checkpoints_page() -> str:
    """The forms of public quantised checkpoints, and what they are read as."""
    rows = []
    for form in json.loads(_FORMS.read_text(encoding="utf-8")):
        files = "<br>".join(f"{name}: `{_cell(json.dumps(content))}`" for name, content in form["files"].items())
        held = f"`{form['precision']}`" if form["precision"] else f"refused as `{form['method']}`"
        cache = f", KV cache `{form['kv_cache']}`" if form["kv_cache"] else ""
        rows.append(f"| {files} | {held}{cache} | {', '.join(form['checkpoints'])} | {form['source']} |\n")
    return _CHECKPOINTS + "".join(rows)


_DATA = REFERENCE.parents[1] / "tests/checkpoint"
_MODEL_TYPES = """# Model types

<!-- Written by docs/generate.py from moe_eval/checkpoint/geometry and tests/checkpoint/published_*.json. -->

`moe-eval doctor --checkpoint PATH` says which sizes `config.json` gives. Floors, counts of experts and the memory of
random weights follow from them. A model of another type has no floor, and the record says so.

These types of `config.json` are known, at the top or in `text_config`: {types}.

Tests hold parameters and caches against Transformers' own model of every type, where it has one.
Those of the releases below are held against published counts. No release was compared with its own files.

- Parameters are in billions, without norms, biases, encoders and layers of multi-token prediction.
- A token's parameters leave out the experts that it does not use and the tables of token vectors.
- The cache is that of one sequence in 16 bits, in MiB. States that do not grow are in it.

| release | model type | layers, with router | experts, of a token | parameters, published | of a token, published \
| cache of 1,024 tokens | of 32,768 | sizes from | counts from |
|---|---|---|---|---|---|---|---|---|---|
"""


def model_types_page() -> str:
    """The model types with known sizes, and those of public releases."""
    configs = json.loads((_DATA / "published_configs.json").read_text(encoding="utf-8"))
    rows = []
    for count in json.loads((_DATA / "published_counts.json").read_text(encoding="utf-8")):
        config = configs[count["model"]]
        sizes = geometry.read(config)
        assert sizes is not None
        caches = (f"{sizes.sequence_bytes(tokens, 2) / 2**20:,.0f}" for tokens in (1024, 32768))
        cells = (
            count["model"],
            f"`{config['model_type']}`",
            f"{sizes.layers}, {sizes.moe_layers}",
            f"{sizes.experts}, {sizes.top_k}",
            f"{sizes.params.total / 1e9:.1f}, {count['total']}",
            f"{sizes.active_params / 1e9:.1f}, {count['active']}",
            *caches,
            count["config"],
            count["counts"],
        )
        rows.append(f"| {' | '.join(cells)} |\n")
    return _MODEL_TYPES.format(types=", ".join(f"`{name}`" for name in FAMILIES)) + "".join(rows)


def _notes(attributes: str) -> list[str]:
    """The entries of an Attributes section, each on one line."""
    notes: list[str] = []
    for line in inspect.cleandoc(attributes).splitlines():
        if line.startswith(" ") and notes:
            notes[-1] += f" {line.strip()}"
        else:
            notes.append(line.strip())
    return [note for note in notes if note]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


if __name__ == "__main__":
    REFERENCE.mkdir(exist_ok=True)
    (REFERENCE / "options.md").write_text(options_page(), encoding="utf-8")
    (REFERENCE / "records.md").write_text(records_page(), encoding="utf-8")
    (REFERENCE / "checkpoints.md").write_text(checkpoints_page(), encoding="utf-8")
    (REFERENCE / "model-types.md").write_text(model_types_page(), encoding="utf-8")
