"""What is settled before a served engine's library is imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from moe_eval.engines.base import EngineSettings
from moe_eval.engines.served import checkpoint
from moe_eval.engines.served.checkpoint import Model
from moe_eval.engines.served.placement import Placement, check_machine
from moe_eval.engines.served.traits import Traits

# in place of a checkpoint's fingerprint if its weights are not read
_DUMMY_FINGERPRINT = "random weights (load_format=dummy)"


@dataclass(frozen=True)
class Plan:
    """What to load, and where.

    Attributes:
        settings: the user's.
        options: those of the settings that are the library's own.
    """

    settings: EngineSettings
    options: dict[str, object]
    placement: Placement
    model: Model
    vocabulary: int

    @property
    def dummy(self) -> bool:
        """Whether the library itself is to make up the weights."""
        return str(self.options.get("load_format", "")).lower() == "dummy"

    @property
    def weights(self) -> Literal["checkpoint", "random"]:
        """Where the weights come from."""
        return "random" if self.dummy else self.model.weights

    @property
    def fingerprint(self) -> str:
        """What identifies the weights."""
        return _DUMMY_FINGERPRINT if self.dummy else self.model.fingerprint

    def constructor_arguments(self, tokenizer: Any) -> dict[str, object]:
        """The arguments of the library's LLM that say what to load."""
        arguments: dict[str, object] = {
            "model": self.model.name,
            "dtype": self.model.dtype if self.model.carried.method == "none" else self.settings.dtype,
            "revision": self.settings.revision,
            "trust_remote_code": self.settings.trust_remote_code,
        }
        if str(tokenizer.name_or_path) != self.model.name:
            arguments["tokenizer"] = str(tokenizer.name_or_path)
        return arguments


def make(
    traits: Traits,
    settings: EngineSettings,
    options: dict[str, object],
    placement: Placement,
    tokenizer: Any,
    *,
    weights: Literal["checkpoint", "random"] = "checkpoint",
    launched: bool = False,
) -> Plan:
    """Read the checkpoint and check the machine.

    Raises:
        UsageError: the checkpoint or the machine lacks something.
    """
    model = checkpoint.read_model(traits, settings, weights)
    check_machine(traits, settings, options, model, placement.world, launched=launched)
    vocabulary = int(str(model.config.get("vocab_size") or len(tokenizer)))
    return Plan(settings, options, placement, model, vocabulary)
