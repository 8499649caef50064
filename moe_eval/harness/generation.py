"""The harness's generation arguments as an engine's request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moe_eval.engines.base import GenerationRequest
from moe_eval.errors import UsageError

_IGNORED = ("num_beams", "length_penalty", "early_stopping", "use_cache")


@dataclass(frozen=True)
class Generation:
    """One kind of generation: requests that share it can share a batch."""

    request: GenerationRequest

    @classmethod
    def read(cls, arguments: Mapping[str, Any], default_tokens: int) -> Generation:
        """Read `--gen_kwargs` and a task's generation_kwargs.

        Decoding is greedy unless do_sample is true or the temperature is above 0 and do_sample is not false.
        top_p and top_k apply only where they are given.

        Raises:
            UsageError: an argument that no engine here takes, or a value that makes no sense.
        """
        left = dict(arguments)
        stop = left.pop("until", None) or []
        lengths = [
            left.pop(name, None) for name in ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
        ]
        most = next((length for length in lengths if length is not None), default_tokens)
        sample = left.pop("do_sample", None)
        temperature = left.pop("temperature", None)
        try:
            heat = float(temperature) if temperature is not None else (1.0 if sample else 0.0)
            request = GenerationRequest(
                max_new_tokens=int(most),
                stop=(stop,) if isinstance(stop, str) else tuple(str(text) for text in stop if text),
                temperature=0.0 if sample is False else heat,
                top_p=float(left.pop("top_p", 1.0)),
                top_k=int(left.pop("top_k", 0)),
                ignore_eos=bool(left.pop("ignore_eos", False)),
            )
        except (TypeError, ValueError) as error:
            raise UsageError(f"A generation argument is not a number ({error}).") from None
        if request.max_new_tokens < 1 or request.temperature < 0 or not 0 < request.top_p <= 1 or request.top_k < 0:
            raise UsageError(
                "Generation needs max_gen_toks above 0, a temperature and top_k of 0 or more, and top_p above 0 and "
                "at most 1."
            )
        # greedy search has one beam, whatever it is called
        if left.get("num_beams", 1) not in (1, None):
            raise UsageError("Beam search is not supported; leave out num_beams.")
        unknown = sorted(set(left) - set(_IGNORED))
        if unknown:
            raise UsageError(
                f"There is no generation argument {', '.join(unknown)}; there are until, max_gen_toks, do_sample, "
                "temperature, top_p, top_k and ignore_eos."
            )
        return cls(request)

    def cut(self, text: str) -> str:
        """The text before the first stop text."""
        for stop in self.request.stop:
            text = text.partition(stop)[0]
        return text
