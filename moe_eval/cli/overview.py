"""What `moe-eval --version` and `--help` print, without the options of commands, which take longer to import."""

from __future__ import annotations

VERSION = "0.1.0"  # pyproject.toml reads it from here
COMMANDS = {
    "run": "quality, latency and kernels of several precisions, with a verdict",
    "compare": "recorded arms side by side, with a verdict",
    "ppl": "perplexity of several precisions over the same windows",
    "perf": "latency and throughput of several precisions on the same prompts",
    "sensitivity": "which layers cost quality when their experts are quantised, and which may be",
    "kernels": "where the time of a profiler's trace goes",
    "export": "a run as one file to share, or as a table",
    "import": "results of vllm bench, trtllm-bench and AIPerf as an arm",
    "log": "log recorded runs to MLflow",
    "doctor": "what this machine has, and whether its TensorRT-LLM passes a self-test",
    "completion": "a script that makes a shell complete these commands",
}
# of `moe-eval run`: a comment and a command line each
EXAMPLES = (
    ("the shipped model in BF16 against emulated FP8 and NVFP4, on any machine", "moe-eval run"),
    (
        "two checkpoints on vLLM, as a check in CI",
        'moe-eval run --engine vllm --model_path M --fp8_model_path M8 --precisions bf16,fp8 --gate "speed>=1.2"',
    ),
)


def text() -> str:
    """What it prints."""
    lines = [
        "usage: moe-eval COMMAND [options]",
        "",
        "Speed and quality of mixture-of-experts models by precision of their experts.",
        "",
        "commands:",
        *(f"  {name:<13}{line}" for name, line in COMMANDS.items()),
        "",
        "options:",
        "  -h, --help  show this, or a command's options after its name",
        "  --version   show the version",
        "",
        "examples:",
        *(f"  # {comment}\n  {line}" for comment, line in EXAMPLES),
    ]
    return "\n".join(lines)
