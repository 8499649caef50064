"""`vllm serve` by its own subcommand, with arguments that its command line has no flag for."""

from __future__ import annotations

import argparse
import json
import os
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from moe_eval.engines.vllm import random_weights, serve_command, server

SERVED: list[argparse.Namespace] = []


class Subcommand:
    """As vllm/entrypoints/cli/serve.py has it."""

    @staticmethod
    def cmd(args: argparse.Namespace) -> None:
        SERVED.append(args)

    def validate(self, args: argparse.Namespace) -> None:
        assert args.host == "127.0.0.1"


def make_arg_parser(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("model_tag", nargs="?")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--disable-uvicorn-access-log", action="store_true")
    parser.add_argument("--load-format", default="auto")
    return parser


@pytest.fixture(params=["vllm.utils.argparse_utils", "vllm.utils"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The modules of newer and older versions."""
    modules: dict[str, Any] = {
        "vllm": {},
        "vllm.entrypoints": {},
        "vllm.entrypoints.utils": {
            "cli_env_setup": lambda: monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
        },
        "vllm.entrypoints.cli": {},
        "vllm.entrypoints.cli.serve": {"ServeSubcommand": Subcommand},
        "vllm.entrypoints.openai": {},
        "vllm.entrypoints.openai.cli_args": {"make_arg_parser": make_arg_parser},
        "vllm.config": {"ProfilerConfig": SimpleNamespace},
        request.param: {"FlexibleArgumentParser": argparse.ArgumentParser},
    }
    for name, content in modules.items():
        module = ModuleType(name)
        module.__path__ = []  # type: ignore[attr-defined]
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    SERVED.clear()


def test_arguments_reach_the_engine_whether_they_have_flags_or_not(
    library: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered: list[str] = []
    monkeypatch.setattr(random_weights, "register", lambda: registered.append("yes"))
    arguments = {
        "model": "/checkpoint",
        "load_format": random_weights.LOAD_FORMAT,
        "quantization_config": {"ignore": ["re:.*\\.gate$"]},
        "profiler_config": {"profiler": "torch", "torch_profiler_dir": "/traces"},
        "enable_prefix_caching": False,
    }
    serve_command.main(["8123", json.dumps(arguments)])
    (args,) = SERVED
    assert (args.port, args.model, args.model_tag) == (8123, "/checkpoint", None)
    assert args.quantization_config == {"ignore": ["re:.*\\.gate$"]}
    assert args.profiler_config.torch_profiler_dir == "/traces"
    assert args.enable_prefix_caching is False
    assert registered == ["yes"]
    assert os.environ["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"


def test_a_checkpoint_with_weights_needs_no_load_format(library: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_weights, "register", lambda: pytest.fail("there are weights"))
    serve_command.main(["1", json.dumps({"model": "m"})])
    assert SERVED[0].load_format == "auto"


def test_requests_in_steps_are_read_from_prometheus_text() -> None:
    text = (
        "# HELP vllm:num_requests_running x\n"
        'vllm:num_requests_running{engine="0",model_name="m"} 7.0\n'
        'vllm:num_requests_running{engine="1",model_name="m"} 5.0\n'
        'vllm:num_requests_running_by{engine="0"} 9.0\n'
    )
    assert server._RUNNING.findall(text) == ["7.0", "5.0"]
