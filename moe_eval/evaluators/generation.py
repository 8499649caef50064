"""The harness's generation arguments as an engine's request, and its completions as answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moe_eval.engines import sampling
from moe_eval.engines.base import GenerationRequest
from moe_eval.errors import UsageError
from moe_eval.frozen import frozen

Arguments = Mapping[str, Any]


@frozen
class Generation:
    """What a task wants of each of its prompts.

    Attributes:
        stop: texts that end an answer.
        skip_special_tokens: leave special tokens out of the answer.
    """

    request: GenerationRequest
    stop: tuple[str, ...] = ()
    skip_special_tokens: bool = True


def read(arguments: Arguments, default_tokens: int, engine: str, *, thinks: bool = False) -> Generation:
    """Read `--gen_kwargs` and a task's generation_kwargs.

    Decoding is greedy unless do_sample is true, or the temperature is above 0 and do_sample is not false.

    Args:
        default_tokens: to generate where no argument says how many.
        engine: the name of an engine of the registry.
        thinks: a thought comes before the answer. No stop text ends it, since thoughts hold blank lines too.

    Raises:
        UsageError: an argument that the engine does not take, or a value that makes no sense.
    """
    fields, further = sampling.read(arguments, engine)
    skips = fields.pop("skip_special_tokens", True)
    samples, temperature = fields.pop("do_sample", None), fields.pop("temperature", None)
    if samples is False:
        temperature = 0.0
    elif temperature is None:
        temperature = 1.0 if samples else 0.0
    if not temperature:
        further = {name: value for name, value in further.items() if not sampling.arguments()[name].samples}
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    fields = {"max_new_tokens": default_tokens, "temperature": temperature, "further": further, **fields}
    request = GenerationRequest(**fields)
    if request.min_new_tokens > request.max_new_tokens:
        raise UsageError(
            f"min_new_tokens={request.min_new_tokens} is more than the {request.max_new_tokens} tokens that are "
            "generated. Give a larger max_gen_toks."
        )
    return Generation(replace(request, stop=()) if thinks else request, request.stop, skips)


def answer(tokens: tuple[int, ...], kind: Generation, end: int | str | None, tokenizer: Any) -> str:
    """The text of new tokens behind their thought, up to the first stop text, as the harness's models cut it.

    Args:
        end: what ends a thought, see end_of_thought. None where there is none.
    """
    if isinstance(end, int) and end in tokens:
        tokens = tokens[len(tokens) - tokens[::-1].index(end) :]
    text = str(tokenizer.decode(tokens, skip_special_tokens=kind.skip_special_tokens))
    if isinstance(end, str):
        text = text.rpartition(end)[2]
    text = text if end is None else text.lstrip()
    # a model may spell the end of text in letters
    for stop in filter(None, (*kind.stop, tokenizer.decode([tokenizer.eos_token_id]))):
        text = text.partition(stop)[0]
    return text


def end_of_thought(tokenizer: Any, end: int | str | None) -> int | str | None:
    """What ends a thought: a token, or a text in an answer. A text that answers do not show is given as its token."""
    ids = tokenizer.encode(end, add_special_tokens=False) if isinstance(end, str) else []
    return ids[0] if len(ids) == 1 and not tokenizer.decode(ids, skip_special_tokens=True) else end
