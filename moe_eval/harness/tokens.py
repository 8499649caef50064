"""The tokenizer of a checkpoint, and whether it belongs to the model."""

from __future__ import annotations

from typing import Any

from moe_eval.engines.base import Engine, EngineSettings
from moe_eval.errors import UsageError


def load(name: str, settings: EngineSettings, add_bos_token: bool | None = None) -> Any:
    """Load a tokenizer from a folder or a hub.

    Raises:
        UsageError: there is none, it cannot be read, or it has no end-of-text token.
    """
    import transformers

    # the tokenizer itself has to be told: one that adds no BOS adds none for add_special_tokens either
    more = {} if add_bos_token is None else {"add_bos_token": add_bos_token}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            name, revision=settings.revision, trust_remote_code=settings.trust_remote_code, **more
        )
    # Transformers raises whatever its readers raise: OSError, ValueError, KeyError and the Rust library's Exception
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UsageError(f"There is no usable tokenizer in {name}; name one with tokenizer=. ({reason})") from error
    if tokenizer.eos_token_id is None:
        raise UsageError(f"The tokenizer of {name} names no end-of-text token; name another with tokenizer=.")
    return tokenizer


def check(tokenizer: Any, engine: Engine) -> None:
    """Refuse a tokenizer that makes ids which the model does not have.

    Raises:
        UsageError: with both sizes.
    """
    largest = max(tokenizer.get_vocab().values())
    if largest >= engine.facts.vocabulary:
        engine.close()
        raise UsageError(
            f"The tokenizer of {tokenizer.name_or_path} does not match the model: it makes ids up to {largest}, "
            f"and {engine.facts.checkpoint} has {engine.facts.vocabulary}; name the right one with tokenizer=."
        )
