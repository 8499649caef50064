"""Which labels of a record become parameters in MLflow: what a colleague needs, and no more."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

# of a switch that is off, a value that is not there, and tokens for what is kept from others
_SAYS_NOTHING = re.compile(
    r"None|False|\{\}|(\[(host|user|home|folder|pid|gpu|redacted)\]|gpu\d+|[,/\\ ])*", re.IGNORECASE
)
# how a command was called and shown, and what the program keeps for itself
_INTERNAL = re.compile(
    r"output_(dir|path)|config|resume|quiet|verbose|json|dry_run|gate|(stall_)?timeout|keep_report|track|uuid|worker"
    r"|scores_ids|unobserved|log_samples|use_cache|bootstrap_iters|predict_only"
)
_LONGEST_KEY = 250  # mlflow.utils.validation
_TELLING_OFF = frozenset({"emulated"})  # a switch that tells where it is off


def of_labels(labels: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Nested labels as (dotted key, text) pairs, without those that say nothing."""
    for key, text in _flat(labels, ""):
        name = key.rpartition(".")[2]
        if name in _TELLING_OFF or not (_INTERNAL.fullmatch(name) or _SAYS_NOTHING.fullmatch(text)):
            yield re.sub(r"[^\w.:/ -]", "_", key)[:_LONGEST_KEY], text


def _flat(value: object, prefix: str) -> Iterator[tuple[str, str]]:
    """Lists of numbers and texts stay one value."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value):
        for index, item in enumerate(value):
            yield from _flat(item, f"{prefix}.{index}")
    else:
        yield prefix, ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
