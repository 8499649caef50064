"""An endpoint as an arm: what is known of it, which is little."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from moe_eval.engines.base import EngineSettings
from moe_eval.engines.endpoint.server import KEY, Server
from moe_eval.engines.options import flag, number
from moe_eval.errors import UsageError
from moe_eval.frozen import frozen
from moe_eval.machine.hardware import Gpu
from moe_eval.records.labels import UNKNOWN, EngineFacts

_WINDOW = 2048  # the harness's own, where the server does not tell
FREE_TOKENS = 2  # of a window: one to condition the first token, and one that every request generates


@frozen
class Endpoint:
    """What stands for an engine.

    Attributes:
        tokenizer: the folder or hub name. None where prompts are sent as they are.
        concurrent: requests at once.
    """

    facts: EngineFacts
    server: Server
    tokenizer: str | None
    concurrent: int

    def close(self) -> None:
        """Leave the server alone: it belongs to somebody else."""


def server_of(settings: EngineSettings) -> Server:
    """The server that settings of an arm name.

    Raises:
        UsageError: they name none.
    """
    options = dict(settings.options)
    url = str(options.get("base_url") or "").rstrip("/")
    for path in ("/chat/completions", "/completions"):
        url = url.removesuffix(path)
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError("engine=openai needs the address of a server. Give base_url=http://127.0.0.1:8000/v1.")
    if parts.password or parts.username:
        raise UsageError(f"base_url holds a user or a password. Leave them out, and set the variable {KEY}.")
    return Server(url, settings.checkpoint, flag(options, "chat") is True)


def window_of(settings: EngineSettings) -> int:
    """Tokens of the longest text that an endpoint scores whole: its own window less what the harness leaves free.

    Raises:
        UsageError: it does not answer.
    """
    own_window = number(settings.options, "max_length") or server_of(settings).window() or _WINDOW
    return max(1, own_window - FREE_TOKENS)


def check(settings: EngineSettings, _gpus: Sequence[Gpu], *, reads_weights: bool = True) -> None:
    """Refuse an endpoint that does not answer. `reads_weights`: whether it has to be there.

    Raises:
        UsageError: why it does not.
    """
    server = server_of(settings)
    for name in ("max_length", "num_concurrent"):
        number(settings.options, name)
    if reads_weights:
        server.window()
        server.check_answers()


def load(settings: EngineSettings, _tokenizer: Any) -> Endpoint:
    """What is known of an endpoint.

    Raises:
        UsageError: it does not answer.
    """
    server, options = server_of(settings), settings.options
    tokenizer = options.get("tokenizer")
    facts = EngineFacts(
        name="openai",
        version=UNKNOWN,
        checkpoint=server.model,
        fingerprint=UNKNOWN,
        architecture=UNKNOWN,
        vocabulary=0,
        precision=settings.precision or UNKNOWN,
        emulated=False,
        dtype=UNKNOWN,
        device="endpoint",
        device_name=UNKNOWN,
        max_length=window_of(settings),
        worker=None,
        attention_backend=None,
        moe_backend_requested=None,
        moe_backend_observed=None,
        kv_cache_dtype=None,
        cuda_graph_batch_sizes=None,
        scores_from="the endpoint, checked against nothing",
        arguments={"base_url": server.place, "chat": server.chat},
    )
    return Endpoint(
        facts, server, None if tokenizer is None else str(tokenizer), number(options, "num_concurrent") or 1
    )
