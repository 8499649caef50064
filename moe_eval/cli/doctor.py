"""`moe-eval doctor`: what this machine has, and whether TensorRT-LLM does here what moe_eval relies on."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from moe_eval.checkpoint import precision
from moe_eval.cli.options import arm_text
from moe_eval.cli.options.machine import DoctorOptions
from moe_eval.cli.output import Conclusion
from moe_eval.emulation import PRECISIONS as EMULATED
from moe_eval.engines import registry
from moe_eval.errors import UsageError
from moe_eval.frozen import frozen
from moe_eval.machine import hardware

if TYPE_CHECKING:
    from moe_eval.engines.trtllm.page import Page


def run(options: DoctorOptions) -> Conclusion:
    """Run the subcommand. Where the self-test has failed the exit code is 1.

    Raises:
        UsageError: a checkpoint that cannot be read, or options that do not go together.
    """
    if options.checkpoint is not None:
        if options.selftest or options.model_args:
            raise UsageError("--checkpoint only reads files. Leave out --selftest and --model_args.")
        from moe_eval.cli import checkpoint_facts

        return checkpoint_facts.run(options.checkpoint)
    machine = hardware.machine()
    versions = {name: _version(kind.package) for name, kind in registry.ENGINES.items()}
    rows = _matrix(machine, versions)
    facts: dict[str, object] = {"machine": machine, "engines": versions, "precisions": rows}
    lines = [_runs(name, version, rows) for name, version in versions.items()]
    print("\n".join(_page(machine, versions, rows)))
    if not options.selftest:
        return Conclusion(facts, lines)
    outcome = _selftest(options.model_args)
    print("\n".join(outcome.lines))
    facts["selftest"] = {"failed": outcome.failed, "page": outcome.lines}
    if outcome.failed:
        return Conclusion(
            facts, outcome.lines, ["The self-test found something that does not work. See FAILED above."], 1
        )
    return Conclusion(facts, [*lines, "The self-test found nothing that does not work."])


@frozen
class _Support:
    """A precision on an engine: whether it runs on the first GPU, and why not."""

    engine: str
    precision: str
    runs: bool
    why_not: str | None


def _matrix(machine: hardware.Machine, versions: Mapping[str, str | None]) -> list[_Support]:
    """Every precision on every engine."""
    rows = []
    for engine, version in versions.items():
        for name in (*precision.PRECISIONS, *precision.WEIGHT_ONLY.values()):
            reason = _why_not(engine, name, version, machine)
            rows.append(_Support(engine, name, reason is None, reason))
    return rows


def _why_not(engine: str, name: str, version: str | None, machine: hardware.Machine) -> str | None:
    kind = registry.ENGINES[engine]
    if version is None:
        return f"{kind.title} is not installed"
    if kind.cpu and name in precision.DTYPE_OF:
        return None
    if kind.cpu and name in EMULATED:
        return "emulated alone (emulate=true)"
    if not any((row.engine, row.precision) == (engine, name) for row in precision.support()):
        return "not known to run"
    return precision.why_not(engine, name, machine.gpus[0].sm, version=version) if machine.gpus else "no GPU"


def _page(machine: hardware.Machine, versions: Mapping[str, str | None], rows: list[_Support]) -> list[str]:
    lines = ["# moe-eval doctor", "", "## Machine", "", f"- {machine.os}, Python {machine.python}, {machine.cpu}"]
    lines += [
        f"- GPU {index}: {gpu.name}, SM{gpu.sm}, {gpu.memory_bytes / 2**30:.1f} GiB"
        for index, gpu in enumerate(machine.gpus)
    ] or ["- no GPU that torch can use"]
    lines += [f"- driver {machine.driver or 'none'}, CUDA of torch {machine.cuda or 'none'}", "", "## Engines", ""]
    for name, kind in registry.ENGINES.items():
        absent = f"is not installed ({kind.install})"
        lines.append(f"- {name}: {kind.title} {versions[name] or absent}")
    lines += ["", "## Precisions of the experts", ""]
    for row in rows:
        if versions[row.engine] is not None:
            lines.append(f"- {row.precision} on {row.engine}: {row.why_not or 'yes'}")
    return lines


def _version(package: str) -> str | None:
    if find_spec(package) is None:
        return None
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "of an unknown version"


def _runs(engine: str, version: str | None, rows: Sequence[_Support]) -> str:
    """The precisions that an engine runs here, in a line that begins with its name."""
    names = [row.precision for row in rows if row.engine == engine and row.runs]
    if version is None:
        return f"{engine} is not installed."
    return f"{engine} {version} runs {', '.join(names) or 'no precision'} here."


def _selftest(model_args: str) -> Page:
    from moe_eval.checkpoint import tokenizer as tokens
    from moe_eval.checkpoint.shipped import SHIPPED
    from moe_eval.engines.trtllm import page
    from moe_eval.harness import settings

    defaults = {"pretrained": str(SHIPPED), "enable_iter_perf_stats": True}
    model = settings.read({**defaults, **arm_text.model_args(model_args), "engine": "trtllm"})
    tokenizer = tokens.load(model.tokenizer, model.of_engine.revision, model.of_engine.trust_remote_code)
    engine = registry.load("trtllm", model.of_engine, tokenizer)
    try:
        return page.write(engine, tokenizer)  # type: ignore[arg-type]  # the engine of this name is a TrtllmEngine
    finally:
        engine.close()
