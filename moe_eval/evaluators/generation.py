"""The harness's generation arguments as an engine's request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from moe_eval.engines.base import GenerationRequest
from moe_eval.errors import UsageError, mended

_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_IGNORED = ("num_beams", "length_penalty", "early_stopping", "use_cache")
_OTHERS = ("until", "do_sample", "temperature", "top_p", "top_k", "ignore_eos")
Arguments = Mapping[str, Any]


def read(arguments: Arguments, default_tokens: int) -> GenerationRequest:
    """Read `--gen_kwargs` and a task's generation_kwargs.

    Decoding is greedy unless do_sample is true, or the temperature is above 0 and do_sample is not false.

    Raises:
        UsageError: an argument that no engine here takes, or a value that makes no sense.
    """
    try:
        request = _request(arguments, default_tokens)
    except (TypeError, ValueError) as error:
        raise UsageError(f"A generation argument is not a number ({error}). Give a number.") from None
    if request.max_new_tokens < 1 or request.temperature < 0 or not 0 < request.top_p <= 1 or request.top_k < 0:
        raise UsageError(
            "A generation argument is out of range. Give max_gen_toks above 0, a temperature and top_k of 0 or "
            "more, and top_p above 0 and at most 1."
        )
    # greedy search has one beam
    if arguments.get("num_beams", 1) not in (1, None):
        raise UsageError("Beam search is not supported. Leave out num_beams.")
    unknown = sorted(set(arguments) - {*_LENGTHS, *_IGNORED, *_OTHERS})
    if unknown:
        fix = "Give until, max_gen_toks, do_sample, temperature, top_p, top_k or ignore_eos."
        fix = mended(unknown[0], (*_LENGTHS, *_OTHERS), fix)
        raise UsageError(f"There is no generation argument {', '.join(unknown)}. {fix}")
    return request


def cut(text: str, stops: Iterable[str]) -> str:
    """The text before the first stop text."""
    for stop in stops:
        text = text.partition(stop)[0]
    return text


def _request(arguments: Arguments, default_tokens: int) -> GenerationRequest:
    stop = arguments.get("until") or []
    lengths = (arguments.get(name) for name in _LENGTHS)
    sample, temperature = arguments.get("do_sample"), arguments.get("temperature")
    if sample is False:
        temperature = 0.0
    elif temperature is None:
        temperature = 1.0 if sample else 0.0
    return GenerationRequest(
        max_new_tokens=int(next((length for length in lengths if length is not None), default_tokens)),
        stop=(stop,) if isinstance(stop, str) else tuple(str(text) for text in stop if text),
        temperature=float(temperature),
        top_p=float(arguments.get("top_p", 1.0)),
        top_k=int(arguments.get("top_k", 0)),
        ignore_eos=bool(arguments.get("ignore_eos", False)),
    )
