"""What is imported is declared, and what is declared is used."""

from __future__ import annotations

import ast
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DISTRIBUTIONS = packages_distributions()
ENGINES = {"tensorrt-llm", "vllm"}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(requirements: list[str]) -> set[str]:
    return {normal(re.split(r"[\s\[<>=!;~]", requirement)[0]) for requirement in requirements}


def imported() -> set[str]:
    names = set()
    for file in (ROOT / "moe_eval").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
                names |= {str(word.value).partition(".")[0] for word in node.args if isinstance(word, ast.Constant)}
    return names - set(sys.stdlib_module_names) - {"moe_eval"}


def distributions(module: str) -> set[str]:
    """The distributions that a module comes from; engines need not be installed."""
    engine = {"tensorrt_llm": "tensorrt-llm", "vllm": "vllm"}.get(module)
    return {engine} if engine else {normal(name) for name in DISTRIBUTIONS.get(module, [])}


def test_everything_imported_is_declared() -> None:
    allowed = declared(PROJECT["dependencies"]) | ENGINES | {"tomli"}
    # a module of a library that a served engine, or torch for a GPU, brings is imported beside that alone
    beside = {"mpi4py", "ray", "zmq", "flashinfer", "triton"}
    missing = {name for name in imported() - beside if not distributions(name) & allowed and name != "tomli"}
    assert not missing


def test_everything_declared_is_imported() -> None:
    used = {name for module in imported() for name in distributions(module)}
    unused = declared(PROJECT["dependencies"]) - used - {"tomli"}
    assert not unused
