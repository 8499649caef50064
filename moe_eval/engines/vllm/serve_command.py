"""`python -m moe_eval.engines.vllm.serve_command PORT ARGUMENTS`: `vllm serve` with EngineArgs as a JSON object.

The command line of vLLM has no flag for every field, nor does it know weights=random. What runs is its own subcommand.
Source: vllm/entrypoints/cli/serve.py and openai/cli_args.py, versions 0.18 to 0.22.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from typing import Any

from moe_eval.engines.serving import HOST
from moe_eval.engines.vllm import random_weights


def main(argv: Sequence[str]) -> None:
    """Serve until a signal ends it."""
    port, arguments = argv[0], json.loads(argv[1])
    serve = importlib.import_module("vllm.entrypoints.cli.serve").ServeSubcommand
    importlib.import_module("vllm.entrypoints.utils").cli_env_setup()  # as `vllm` does: its processes are spawned
    if arguments.get("load_format") == random_weights.LOAD_FORMAT:
        random_weights.register()
    settings = _parser().parse_args(["--host", HOST, "--port", port, "--disable-uvicorn-access-log"])
    for name, value in arguments.items():
        setattr(settings, name, value)
    if isinstance(profiler := arguments.get("profiler_config"), dict):
        settings.profiler_config = importlib.import_module("vllm.config").ProfilerConfig(**profiler)
    serve().validate(settings)
    serve.cmd(settings)


def _parser() -> Any:
    """What parses the words after `vllm serve`, whose class has moved between versions."""
    options = importlib.import_module("vllm.entrypoints.openai.cli_args")
    try:
        utilities = importlib.import_module("vllm.utils.argparse_utils")
    except ImportError:
        utilities = importlib.import_module("vllm.utils")
    return options.make_arg_parser(utilities.FlexibleArgumentParser())


if __name__ == "__main__":
    main(sys.argv[1:])
