"""`--use_cache` that never mixes two arms, since the harness's own key ignores the model."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

import torch
from sqlitedict import SqliteDict

from moe_eval.errors import UsageError
from moe_eval.harness.settings import ModelSettings
from moe_eval.records.labels import EngineFacts

# arguments that change how fast an answer comes, and not the answer
_WITHOUT_EFFECT = ("batch_size", "max_batch_size", "track", "profiler")


def identity(settings: ModelSettings, facts: EngineFacts) -> str:
    """A digest of everything in an arm that may change an answer.

    Returns:
        16 hexadecimal digits of SHA-256 over the model arguments, the engine's facts (checkpoint fingerprint,
        precision, window, versions and hardware among them) and the version of torch.
    """
    arguments = {key: value for key, value in settings.arguments.items() if key not in _WITHOUT_EFFECT}
    whole = json.dumps([arguments, asdict(facts), torch.__version__], sort_keys=True, default=str)
    return hashlib.sha256(whole.encode()).hexdigest()[:16]


def of_this_arm(hook: Any, arm: str) -> Any:
    """Point the harness's cache at a table for this arm alone.

    The hook shares its SqliteDict with the harness's CachingLM, so both use that table from then on.

    Raises:
        UsageError: the hook holds an unknown kind of store.
    """
    store = hook.dbdict
    if store is None:
        return hook
    if not isinstance(store, SqliteDict):
        raise UsageError("This lm-eval keeps its cache in a form unknown to moe_eval. Leave out --use_cache.")
    table = f"trtllm_moe_{arm}"
    SqliteDict(store.filename, tablename=table, autocommit=True).close()  # makes the table
    store.tablename = table
    return hook
