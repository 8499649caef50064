"""Emulated precisions on the Transformers engine: the user's options, and the text that calibrates them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

import torch

from moe_eval.checkpoint import precision
from moe_eval.emulation import PRECISIONS
from moe_eval.emulation import model as emulation
from moe_eval.emulation.model import Applied, Emulation
from moe_eval.engines.base import EngineSettings
from moe_eval.engines.options import flag, number
from moe_eval.engines.registry import EMULATION
from moe_eval.errors import UsageError, mended

_WINDOWS, _WINDOW_TOKENS = 16, 512


def requested(settings: EngineSettings) -> Emulation | None:
    """The emulation that the options request, or None for none."""
    options = dict(settings.options)
    if not flag(options, "emulate"):
        stray = [name for name in EMULATION[1:] if name in settings.options]
        if stray:
            raise UsageError(f"{stray[0]} is a setting of emulation. Add emulate=true, or omit {stray[0]}.")
        if settings.precision in PRECISIONS:
            raise UsageError(
                f"The transformers engine runs {', '.join(precision.DTYPE_OF)}, not {settings.precision}. Add "
                "emulate=true for its quality, or choose another engine."
            )
        return None
    if settings.precision is None:
        raise UsageError(f"emulate=true needs a precision. Give precision={' or '.join(PRECISIONS)}.")
    if settings.precision not in PRECISIONS:
        precision.check(str(settings.precision), "emulation", PRECISIONS)
    scope = _choice(options, "scope", emulation.SCOPES, "experts")
    dynamic = settings.precision == "fp8_block"
    activations = _choice(options, "activations", emulation.ACTIVATIONS, "dynamic" if dynamic else "static")
    if dynamic and activations == "static":
        raise UsageError("fp8_block has a scale for every 128 activations of a token. Omit activations=static.")
    windows = number(options, "calibration_windows") or _WINDOWS
    return Emulation(settings.precision, scope, activations, windows if activations == "static" else 0)


def _choice(options: Mapping[str, object], name: str, choices: tuple[str, ...], default: str) -> str:
    value = str(options.get(name, default))
    if value not in choices:
        fix = mended(value, choices, f"Choose {' or '.join(choices)}.")
        raise UsageError(f"There is no {name} {value!r}. {fix}")
    return value


@torch.inference_mode()
def start(model: Any, request: Emulation, tokenizer: Any, window: int) -> dict[str, object]:
    """Put an emulation into a loaded model, calibrated on the package's sample articles, and return its labels."""
    return labels(emulation.apply(model, request, _calibration(model, request, tokenizer, window)), window)


@torch.inference_mode()
def prepare(model: Any, request: Emulation, tokenizer: Any, window: int) -> Applied:
    """Calibrate an emulation of a loaded model like `start`, and leave the model unquantised."""
    return emulation.calibrated(model, request, _calibration(model, request, tokenizer, window))


def labels(applied: Applied, window: int) -> dict[str, object]:
    """The labels of an emulation."""
    request = applied.emulation
    return {
        "emulated_scope": request.scope,
        "emulated_matrices": applied.matrices,
        "activations": request.activations,
        "calibration": f"{request.windows} windows of {min(window, _WINDOW_TOKENS)} tokens of moe_sample"
        if request.windows
        else "none",
    }


def _calibration(model: Any, request: Emulation, tokenizer: Any, window: int) -> Callable[[], None]:
    """A function that runs the calibration text through a model."""
    text = resources.files("moe_eval").joinpath("assets/moe_sample.raw").read_text(encoding="utf-8")
    tokens = tokenizer.encode(text, verbose=False)
    size = min(window, _WINDOW_TOKENS)
    count = max(1, request.windows)
    if len(tokens) < count * size:
        available = max(1, len(tokens) // size)
        raise UsageError(
            f"The calibration text has {available} windows of {size} tokens. Give calibration_windows={available}."
        )

    def calibrate() -> None:
        for at in range(count):
            ids = torch.tensor([tokens[at * size : (at + 1) * size]], device=model.device)
            model.base_model(input_ids=ids, use_cache=False)

    return calibrate
