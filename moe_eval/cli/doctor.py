"""`moe-eval doctor`: what this machine has, and whether TensorRT-LLM does here what moe_eval relies on."""

from __future__ import annotations

import argparse
import importlib.metadata
from importlib.util import find_spec

from moe_eval import engines, hardware
from moe_eval.errors import EngineError


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "doctor",
        help="what this machine has, and whether its TensorRT-LLM passes a self-test",
        description="Print the machine, its GPUs and the engines that are installed. With --selftest load a checkpoint "
        "on TensorRT-LLM, score ten windows in two ways, generate, look for the class of the experts, and print one "
        "page of Markdown; exit code 1 where something that has to work does not.",
    )
    parser.add_argument("--selftest", action="store_true", help="exercise TensorRT-LLM")
    parser.add_argument(
        "--model_args",
        default="",
        metavar="KEY=VALUE,...",
        help="model arguments of --selftest, as lm_eval takes them; without pretrained= the shipped model",
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    for line in _machine():
        print(line)
    if args.selftest:
        _selftest(args.model_args)


def _machine() -> list[str]:
    machine = hardware.machine()
    lines = ["# moe-eval doctor", "", "## Machine", "", f"- {machine.os}, Python {machine.python}, {machine.cpu}"]
    lines += [
        f"- GPU {index}: {gpu.name}, SM{gpu.sm}, {gpu.memory_bytes / 2**30:.1f} GiB"
        for index, gpu in enumerate(machine.gpus)
    ] or ["- no GPU that torch can use"]
    lines += [f"- driver {machine.driver or 'none'}, CUDA of torch {machine.cuda or 'none'}", "", "## Engines", ""]
    for name, kind in engines.ENGINES.items():
        if find_spec(kind.package) is None:
            lines.append(f"- {name}: {kind.title} is not installed ({kind.install})")
        else:
            lines.append(f"- {name}: {kind.title} {_version(kind.package)}")
    return lines


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "of an unknown version"


def _selftest(model_args: str) -> None:
    from lm_eval.utils import simple_parse_args_string

    from moe_eval.engines.trtllm import page
    from moe_eval.harness import settings, tokens

    asked = settings.read(
        {"pretrained": str(settings.SHIPPED), **simple_parse_args_string(model_args), "engine": "trtllm"}
    )
    tokenizer = tokens.load(asked.tokenizer, asked.of_engine)
    engine = engines.load("trtllm", asked.of_engine, tokenizer)
    try:
        found = page.write(engine, tokenizer)  # type: ignore[arg-type]  # the engine of this name is a TrtllmEngine
    finally:
        engine.close()
    print("\n".join(found.lines))
    if found.failed:
        raise EngineError("The self-test found something that does not work; see FAILED above.")
