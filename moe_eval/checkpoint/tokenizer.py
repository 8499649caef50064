"""The tokenizer of a checkpoint, and whether it fits the model."""

from __future__ import annotations

import logging
from typing import Any

import jinja2

from moe_eval.checkpoint import hub
from moe_eval.errors import UsageError

log = logging.getLogger("lm_eval.moe_eval")  # shown as the harness shows its own messages


def load(name: str, revision: str | None, trust_remote_code: bool, add_bos_token: bool | None = None) -> Any:
    """Load a tokenizer from a folder or a hub.

    Raises:
        UsageError: there is no tokenizer, it cannot be read, or it has no end-of-text token.
    """
    import transformers

    # set on the tokenizer, since one that adds no BOS ignores add_special_tokens
    options = {} if add_bos_token is None else {"add_bos_token": add_bos_token}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            name, revision=revision, trust_remote_code=trust_remote_code, **options
        )
    # Transformers raises whatever its readers raise: OSError, ValueError, KeyError and the Rust library's Exception
    except Exception as error:
        if hub.unreachable(error):
            raise UsageError(hub.sentence(name)) from error
        reason = " ".join(str(error).split())[:300]
        raise UsageError(f"There is no usable tokenizer in {name} ({reason}). Give another with tokenizer=.") from error
    if tokenizer.eos_token_id is None:
        raise UsageError(f"The tokenizer of {name} has no end-of-text token. Give another with tokenizer=.")
    return tokenizer


def check(tokenizer: Any, vocabulary: int, checkpoint: str) -> None:
    """Raise a UsageError for a tokenizer that makes ids outside of a checkpoint's vocabulary."""
    largest = max(tokenizer.get_vocab().values())
    if largest >= vocabulary:
        raise UsageError(
            f"The tokenizer of {tokenizer.name_or_path} does not match the model: it makes ids up to {largest}, "
            f"and {checkpoint} has {vocabulary}. Give the model's tokenizer with tokenizer=."
        )


def render_chat(
    tokenizer: Any, history: list[dict[str, str]], add_generation_prompt: bool, enable_thinking: bool | None
) -> str:
    """A chat as the text that the model's template makes of it.

    Args:
        add_generation_prompt: end at the start of the assistant's answer. Otherwise leave its last message open.
        enable_thinking: passed to the template. None leaves the template's default.

    Raises:
        UsageError: the tokenizer has no template.
    """
    if not tokenizer.chat_template:
        raise UsageError(
            f"The tokenizer of {tokenizer.name_or_path} has no chat template. Leave out --apply_chat_template."
        )
    options = {"add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}
    if enable_thinking is not None:
        options["enable_thinking"] = enable_thinking
    try:
        return str(tokenizer.apply_chat_template(history, tokenize=False, **options))
    except jinja2.TemplateError:
        log.warning("The chat template refuses the chat. It gets the chat without its system message, as in `hf`.")
        rest = [message for message in history if message["role"] != "system"]
        return str(tokenizer.apply_chat_template(rest, tokenize=False, **options))
