"""`moe-eval doctor`: what this machine has, and whether TensorRT-LLM does here what moe_eval relies on."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.util import find_spec

from moe_eval.checkpoint import precision
from moe_eval.emulation.model import PRECISIONS as EMULATED
from moe_eval.engines import registry
from moe_eval.errors import EngineError, UsageError
from moe_eval.machine import hardware


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "doctor",
        help="what this machine has, and whether its TensorRT-LLM passes a self-test",
        description="Print the machine, its GPUs, the engines that are installed and which precisions they run here. "
        "With --selftest load a checkpoint on TensorRT-LLM, score ten windows in two ways, generate, look for the "
        "class of the experts, and print one page of Markdown; exit code 1 where something does not work.",
    )
    parser.add_argument("--selftest", action="store_true", help="exercise TensorRT-LLM")
    parser.add_argument("--json", action="store_true", help="the machine, engines and precisions as JSON")
    parser.add_argument(
        "--model_args",
        default="",
        metavar="KEY=VALUE,...",
        help="model arguments of --selftest, as lm_eval takes them; without pretrained= the shipped model",
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    if args.json and args.selftest:
        raise UsageError("--selftest prints a page of Markdown; leave out --json.")
    machine = hardware.machine()
    found = {name: _version(kind.package) for name, kind in registry.ENGINES.items()}
    rows = _matrix(machine, found)
    if args.json:
        print(json.dumps({"machine": asdict(machine), "engines": found, "precisions": rows}, indent=1))
        return
    print("\n".join(_page(machine, found, rows)))
    if args.selftest:
        _selftest(args.model_args)


def _matrix(machine: hardware.Machine, found: Mapping[str, str | None]) -> list[dict[str, str | bool | None]]:
    """Every precision on every engine: whether it runs on the first GPU, and why not."""
    rows: list[dict[str, str | bool | None]] = []
    for engine, version in found.items():
        kind = registry.ENGINES[engine]
        for name in (*precision.PRECISIONS, *precision.WEIGHT_ONLY.values()):
            reason = _reason(engine, kind, name, version, machine)
            rows.append({"engine": engine, "precision": name, "runs": reason is None, "why_not": reason})
    return rows


def _reason(
    engine: str, kind: registry.EngineKind, name: str, version: str | None, machine: hardware.Machine
) -> str | None:
    if version is None:
        return f"{kind.title} is not installed"
    if kind.cpu and name in precision.DTYPE_OF:
        return None
    if kind.cpu and name in EMULATED:
        return "emulated alone (emulate=true)"
    if not any((row.engine, row.precision) == (engine, name) for row in precision.support()):
        return "not known to run"
    return precision.why_not(engine, name, machine.gpus[0].sm, version=version) if machine.gpus else "no GPU"


def _page(
    machine: hardware.Machine, found: Mapping[str, str | None], rows: list[dict[str, str | bool | None]]
) -> list[str]:
    lines = ["# moe-eval doctor", "", "## Machine", "", f"- {machine.os}, Python {machine.python}, {machine.cpu}"]
    lines += [
        f"- GPU {index}: {gpu.name}, SM{gpu.sm}, {gpu.memory_bytes / 2**30:.1f} GiB"
        for index, gpu in enumerate(machine.gpus)
    ] or ["- no GPU that torch can use"]
    lines += [f"- driver {machine.driver or 'none'}, CUDA of torch {machine.cuda or 'none'}", "", "## Engines", ""]
    for name, kind in registry.ENGINES.items():
        absent = f"is not installed ({kind.install})"
        lines.append(f"- {name}: {kind.title} {found[name] or absent}")
    lines += ["", "## Precisions of the experts", ""]
    for row in rows:
        if found[str(row["engine"])] is not None:
            lines.append(f"- {row['precision']} on {row['engine']}: {'yes' if row['runs'] else row['why_not']}")
    return lines


def _version(package: str) -> str | None:
    if find_spec(package) is None:
        return None
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "of an unknown version"


def _selftest(model_args: str) -> None:
    from lm_eval.utils import simple_parse_args_string

    from moe_eval.checkpoint import tokenizer as tokens
    from moe_eval.checkpoint.shipped import SHIPPED
    from moe_eval.engines.trtllm import page
    from moe_eval.harness import settings

    asked = settings.read({"pretrained": str(SHIPPED), **simple_parse_args_string(model_args), "engine": "trtllm"})
    tokenizer = tokens.load(asked.tokenizer, asked.of_engine.revision, asked.of_engine.trust_remote_code)
    engine = registry.load("trtllm", asked.of_engine, tokenizer)
    try:
        found = page.write(engine, tokenizer)  # type: ignore[arg-type]  # the engine of this name is a TrtllmEngine
    finally:
        engine.close()
    print("\n".join(found.lines))
    if found.failed:
        raise EngineError("The self-test found something that does not work; see FAILED above.")
