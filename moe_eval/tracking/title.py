"""What a run is called in MLflow: model, GPU, engine and arms, so that a row of a table says whose it is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from moe_eval.frozen import frozen
from moe_eval.records.labels import EngineFacts
from moe_eval.tracking import owner

CPU = "CPU"


@frozen
class Title:
    """The parts of a name that arms may share. None where a part is not known."""

    model: str | None = None
    gpu: str | None = None
    engine: str | None = None

    @classmethod
    def of_engine(cls, facts: EngineFacts | None) -> Title:
        """By what an engine said of itself."""
        if facts is None:
            return cls()
        gpu = facts.device_name if facts.gpus else CPU
        return cls(short(facts.checkpoint), f"{facts.gpus} x {gpu}" if facts.gpus > 1 else gpu, facts.name)

    @classmethod
    def joint(cls, titles: Iterable[Title]) -> Title:
        """Of several arms, with every part once."""
        parts = zip(*((title.model, title.gpu, title.engine) for title in titles), strict=True)
        return cls(*(", ".join(dict.fromkeys(filter(None, names))) or None for names in parts))

    def filled(self, parts: Title) -> Title:
        """With other parts where these are not known."""
        return Title(self.model or parts.model, self.gpu or parts.gpu, self.engine or parts.engine)

    def name(self, *arms: str) -> str:
        """The name of a run of these arms."""
        return " · ".join(filter(None, (self.model, self.gpu, self.engine, ", ".join(arms))))


def short(checkpoint: str) -> str:
    """The last part of a checkpoint's folder or hub name."""
    return re.split(r"[/\\]", checkpoint.rstrip("/\\"))[-1]


def label(engine: EngineFacts | None) -> str | None:
    """An engine with its version."""
    return None if engine is None else f"{engine.name} {engine.version}"


def source_tags(command: str, git: str | None, versions: Mapping[str, str]) -> dict[str, str]:
    """MLflow's own tags of source and version, and ours of the libraries and of this process."""
    listed = ", ".join(f"{library} {version}" for library, version in versions.items())
    tags = {"mlflow.source.name": command, "mlflow.source.type": "LOCAL", "moe_eval.versions": listed, **owner.tags()}
    if git:
        tags |= {"mlflow.source.git.commit": git.removesuffix("-dirty"), "moe_eval.git": git}
    return {key: value for key, value in tags.items() if value}
