"""A server that somebody else started, driven as it is."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_eval.engines.base import EngineSettings
from moe_eval.engines.endpoint.load import load
from moe_eval.engines.endpoint.server import Server
from moe_eval.engines.serving import ServeSettings
from moe_eval.errors import UsageError
from moe_eval.records.labels import EngineFacts
from moe_eval.records.samples import EngineSteps


@dataclass
class ServedEndpoint:
    """As engines.serving.Served has it. Its metrics are asked for beside its requests' address."""

    server: Server
    facts: EngineFacts
    metrics_url: str | None

    def check(self) -> None:
        """Nothing is known of its process."""

    def forget(self) -> None:
        """Its cache is not ours."""

    def steps(self) -> EngineSteps | None:
        return None

    def running(self) -> float | None:
        return None

    def profiled(self, target: Path) -> AbstractContextManager[None]:
        raise UsageError("A server that somebody else started is not traced. Leave kernels out of --evaluators.")

    def close(self) -> None:
        """Leave the server alone: it belongs to somebody else."""


def serve(settings: EngineSettings, tokenizer: Any, _settings: ServeSettings) -> ServedEndpoint:
    """Ask an endpoint what is known of it.

    Raises:
        UsageError: it does not answer.
    """
    endpoint = load(settings, tokenizer)
    base = endpoint.server.base_url.removesuffix("/v1")
    return ServedEndpoint(endpoint.server, endpoint.facts, f"{base}/metrics")
