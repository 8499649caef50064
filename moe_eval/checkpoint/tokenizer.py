"""The tokenizer of a checkpoint, and whether it belongs to the model."""

from __future__ import annotations

import logging
from typing import Any

import jinja2

from moe_eval.checkpoint import hub
from moe_eval.engines.base import Engine, EngineSettings
from moe_eval.errors import UsageError

log = logging.getLogger("lm_eval.moe_eval")  # shown as the harness shows its own messages


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
        if hub.unreachable(error):
            raise UsageError(hub.sentence(name)) from error
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


def render_chat(
    tokenizer: Any, history: list[dict[str, str]], add_generation_prompt: bool, enable_thinking: bool | None
) -> str:
    """A chat as the text that the model's template makes of it.

    Args:
        history: messages of `role` and `content`.
        add_generation_prompt: end where the assistant is to begin; otherwise leave its last message open.
        enable_thinking: what the template is told; None leaves it to the template.

    Raises:
        UsageError: the tokenizer has no template.
    """
    if not tokenizer.chat_template:
        raise UsageError(
            f"The tokenizer of {tokenizer.name_or_path} has no chat template; leave out --apply_chat_template."
        )
    more = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
    how = {"add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}
    try:
        return str(tokenizer.apply_chat_template(history, tokenize=False, **how, **more))
    except jinja2.TemplateError:
        log.warning("The chat template refuses the chat; it is tried without its system message, as `hf` does.")
        rest = [message for message in history if message["role"] != "system"]
        return str(tokenizer.apply_chat_template(rest, tokenize=False, **how, **more))
