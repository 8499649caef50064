"""An endpoint as lm-evaluation-harness's language model: the harness's own models of OpenAI's interface."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from moe_eval.engines.endpoint.load import FREE_TOKENS, Endpoint
from moe_eval.errors import EngineError, UsageError

_SEED = 1234  # the harness's own


def endpoint_model(endpoint: Endpoint, repeat: int = 0, window: int | None = None) -> Any:
    """`local-completions` or `local-chat-completions` of the harness.

    Args:
        repeat: repeats have other seeds.
        window: the most tokens of a text, None for those of the endpoint.
    """
    from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI

    shared: dict[str, object] = {
        "base_url": endpoint.server.url,
        "model": endpoint.server.model,
        "max_length": min(endpoint.facts.max_length, window or endpoint.facts.max_length) + FREE_TOKENS,
        "num_concurrent": endpoint.concurrent,
        "seed": _SEED + repeat,
    }
    if endpoint.server.chat:
        return LocalChatCompletion(**shared)
    if endpoint.tokenizer is None:
        return LocalCompletionsAPI(**shared, tokenizer_backend=None)
    return LocalCompletionsAPI(**shared, tokenizer_backend="huggingface", tokenizer=endpoint.tokenizer, revision=None)


@contextmanager
def failures(endpoint: Endpoint) -> Iterator[None]:
    """Turn what the harness raises where a server fails into one sentence."""
    try:
        yield
    except (UsageError, EngineError):
        raise
    # requests, aiohttp, tenacity, and KeyError for an answer of another form
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise EngineError(
            f"The endpoint {endpoint.server.place} failed at a request ({reason}). Look into its log. --resume asks "
            "for the missing answers alone"
        ) from error
