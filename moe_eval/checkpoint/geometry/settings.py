"""Single settings of config.json, none of which is guessed."""

from __future__ import annotations

from moe_eval.checkpoint.contents import Json

# above any model, so that a damaged file takes neither memory nor numbers that no float holds
_MOST_LAYERS, _LARGEST = 4096, 1 << 40


def size(config: Json, *names: str) -> int:
    """The first of these settings that config.json has.

    Raises:
        KeyError: it has none.
        ValueError: it is no size.
    """
    name = next((name for name in names if config.get(name) is not None), names[0])
    number = int(config[name])
    if not 1 <= number <= _LARGEST:
        raise ValueError(name)
    return number


def layer_count(config: Json) -> int:
    """How many layers there are.

    Raises:
        ValueError: more than any model has.
    """
    layers = size(config, "num_hidden_layers")
    if layers > _MOST_LAYERS:
        raise ValueError("num_hidden_layers")
    return layers


def listed(config: Json, name: str) -> list[object] | None:
    """A setting with an entry for every layer, and none for layers of multi-token prediction behind them.

    Raises:
        ValueError: it is no list, or has too few.
    """
    entries = config.get(name)
    if not entries or isinstance(entries, int):  # or the same for all layers
        return None
    layers = layer_count(config)
    if not isinstance(entries, (list, str)) or len(entries) < layers:
        raise ValueError(name)
    return list(entries[:layers])
