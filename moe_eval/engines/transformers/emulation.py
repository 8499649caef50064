"""Emulated precisions on the Transformers engine: what was asked, and the text that calibrates it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any

import torch

from moe_eval.checkpoint import precision
from moe_eval.emulation import model as emulation
from moe_eval.emulation.model import Emulation
from moe_eval.engines.base import EngineSettings
from moe_eval.errors import UsageError

OPTIONS = ("emulate", "scope", "activations", "calibration_windows")
_SWITCH = {"true": True, "on": True, "false": False, "off": False}
_WINDOWS, _WINDOW_TOKENS = 16, 512


def asked(settings: EngineSettings) -> Emulation | None:
    """The emulation that the options ask for, None for none.

    Raises:
        UsageError: a value that means nothing, or options of an emulation that is not asked for.
    """
    options = settings.options
    value = str(options.get("emulate", "off")).lower()
    if value not in _SWITCH:
        raise UsageError(f"emulate={options['emulate']} is neither true nor false.")
    if not _SWITCH[value]:
        stray = [name for name in OPTIONS[1:] if name in options]
        if stray:
            raise UsageError(f"{stray[0]} is a setting of emulation; add emulate=true or leave it out.")
        if settings.precision in emulation.PRECISIONS:
            raise UsageError(
                f"The transformers engine runs {', '.join(precision.DTYPE_OF)} and not {settings.precision}; add "
                "emulate=true for its quality, or choose another engine."
            )
        return None
    if settings.precision is None:
        raise UsageError(f"emulate=true needs a precision to emulate; give one of {', '.join(emulation.PRECISIONS)}.")
    if settings.precision not in emulation.PRECISIONS:
        precision.check(str(settings.precision), "emulation", emulation.PRECISIONS)
    scope = _choice(options, "scope", emulation.SCOPES, "experts")
    dynamic = settings.precision == "fp8_block"
    activations = _choice(options, "activations", emulation.ACTIVATIONS, "dynamic" if dynamic else "static")
    if dynamic and activations == "static":
        raise UsageError("fp8_block has a scale for every 128 activations of a token; leave activations=static out.")
    given = options.get("calibration_windows", _WINDOWS)
    if not str(given).isdigit() or int(given) < 1:
        raise UsageError(f"calibration_windows={given} is not a whole number above 0.")
    return Emulation(str(settings.precision), scope, activations, int(given) if activations == "static" else 0)


def _choice(options: Mapping[str, Any], name: str, choices: tuple[str, ...], default: str) -> str:
    value = str(options.get(name, default))
    if value not in choices:
        raise UsageError(f"There is no {name} {value!r}; choose {' or '.join(choices)}.")
    return value


@torch.inference_mode()
def start(model: Any, asked: Emulation, tokenizer: Any, window: int) -> dict[str, Any]:
    """Put the emulation into a loaded model, calibrated on the sample articles of the package.

    Returns:
        The labels.

    Raises:
        UsageError: the model cannot be emulated, or the text is too short for so many windows.
    """
    text = resources.files("moe_eval").joinpath("assets/moe_sample.raw").read_text(encoding="utf-8")
    tokens = tokenizer.encode(text, verbose=False)
    size = min(window, _WINDOW_TOKENS)
    count = max(1, asked.windows)
    if len(tokens) < count * size:
        most = max(1, len(tokens) // size)
        raise UsageError(f"The calibration text has {most} windows of {size} tokens; give calibration_windows={most}.")

    def calibrate() -> None:
        for at in range(count):
            ids = torch.tensor([tokens[at * size : (at + 1) * size]], device=model.device)
            model.base_model(input_ids=ids, use_cache=False)

    applied = emulation.apply(model, asked, calibrate)
    return {
        "emulated_scope": asked.scope,
        "emulated_matrices": applied.matrices,
        "activations": asked.activations,
        "calibration": f"{count} windows of {size} tokens of moe_sample" if asked.windows else "none",
    }
