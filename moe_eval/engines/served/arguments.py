"""Names and types of constructor arguments, as both libraries check them."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from moe_eval.engines.registry import SHARED
from moe_eval.errors import UsageError

Arguments = Mapping[str, Any]  # values of any type that a library's constructor takes

# arguments that the user cannot set, and what to do instead
ELSEWHERE = {
    "model": "Give pretrained.",
    "tokenizer_mode": "Give tokenizer.",
    "tokenizer_revision": "Give revision.",
    "skip_tokenizer_init": "Give tokenizer.",
    "generation_config": "Give sampling arguments with --gen_kwargs, because greedy has to stay greedy.",
}
# the spellings of other tools
SPELLINGS = dict.fromkeys(("tp", "tp_size"), "tensor_parallel_size") | dict.fromkeys(
    ("pp", "pp_size"), "pipeline_parallel_size"
)


def check_names(
    library: str,
    options: Iterable[str],
    accepted: Collection[str],
    elsewhere: Mapping[str, str],
    spellings: Mapping[str, str],
) -> None:
    """Refuse settings that a version does not have, with its own spelling if it has one.

    Args:
        library: title and version.
        elsewhere: settings that the user cannot set, and what to do instead.
        spellings: the library's name of a setting by other tools' names.
    """
    names = [name for name in accepted if name not in elsewhere]
    for option in options:
        if option in elsewhere:
            raise UsageError(f"{option} is not an option of moe_eval. {elsewhere[option]}")
        if option not in names:
            spelling = spellings.get(option)
            close = [spelling] if spelling in names else difflib.get_close_matches(option, [*names, *SHARED], 1, 0.75)
            advice = f"Did you mean {close[0]}?" if close else "Omit it, or use a version that has it."
            raise UsageError(f"{library} has no setting {option}. {advice}")


def mismatch(annotation: Any, value: object) -> str | None:
    """Why a value does not suit an annotation, or None if it does or only the library can judge."""
    from pydantic import TypeAdapter, ValidationError

    try:
        TypeAdapter(annotation).validate_python(value)
    except ValidationError as error:
        return first_reason(error)
    except Exception:  # an annotation that only its own module resolves
        return None
    return None


def first_reason(error: Any) -> str:
    """The first message of a pydantic ValidationError."""
    return str(error.errors()[0]["msg"]).rstrip(".")
