"""The options of the commands that load no arm: compare, kernels, log and doctor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from moe_eval.cli.options.option import Declared, option

_INPUT, _OUTPUT = "input", "output"


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """What `moe-eval compare` can be asked."""

    sources: tuple[str, ...] = option(
        (),
        Declared(
            "a folder, an MLflow run id or an experiment",
            _INPUT,
            metavar="SOURCE",
            is_positional=True,
            word_count="+",
        ),
    )
    across: tuple[Literal["gpus"], ...] = option((), Declared("what may differ between arms", _INPUT, metavar="gpus"))
    gate: str | None = option(
        None,
        Declared('such as "speed>=1.2,ln_ppl<=0.01". The exit code is 0, 1 or 2', _OUTPUT, metavar="CONDITIONS"),
    )
    output_dir: Path = option(Path("."), Declared("the folder of the comparison and the report", _OUTPUT))


@dataclass(frozen=True, kw_only=True)
class KernelsOptions:
    """What `moe-eval kernels` can be asked."""

    action: Literal["classify"] | None = option(
        None, Declared("read kernel names instead of a trace", _INPUT, is_positional=True, word_count="?")
    )
    input: tuple[Path, ...] = option(
        (), Declared("one trace, or two to compare", _INPUT, metavar="TRACE", word_count="+")
    )
    precisions: tuple[str, ...] = option(
        (),
        Declared(
            "the precisions that the traces are said to be of, checked against the kernels that ran",
            _INPUT,
            metavar="NAME,...",
        ),
    )
    tpot_ms: tuple[float, ...] = option(
        (),
        Declared(
            "ms per output token of both, measured without the profiler, to set beside what the kernels predict",
            _INPUT,
            metavar="MS",
            word_count=2,
        ),
    )
    output: Path | None = option(None, Declared("write everything as JSON as well", _OUTPUT, metavar="FILE"))


@dataclass(frozen=True, kw_only=True)
class LogOptions:
    """What `moe-eval log` can be asked."""

    folders: tuple[Path, ...] = option(
        (),
        Declared(
            "the folder of a run: of moe-eval run, perf or ppl, or of lm_eval (it holds record.json)",
            _INPUT,
            metavar="RUN_DIR",
            is_positional=True,
            word_count="+",
        ),
    )


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """What `moe-eval doctor` can be asked."""

    selftest: bool = option(False, Declared("exercise TensorRT-LLM", _INPUT))
    model_args: str = option(
        "",
        Declared(
            "model arguments of --selftest, as lm_eval takes them. Without pretrained= the shipped model is used",
            _INPUT,
            metavar="KEY=VALUE,...",
        ),
    )
    json: bool = option(False, Declared("print the machine, engines and precisions as JSON", _OUTPUT))
