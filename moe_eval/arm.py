"""One arm in a process of its own: `python -m moe_eval.arm JOB` loads it, measures it and writes what it found.

A fresh process gives the GPU's memory back, imports an engine's library under the arm's own environment, and leaves
the other arms alone when it breaks down.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from moe_eval import exits, records
from moe_eval.engines.base import EngineSettings
from moe_eval.errors import EngineError, UsageError


@dataclass(frozen=True)
class Job:
    """What an arm is to measure, as its process reads it.

    Attributes:
        stem: where it writes: `.npz` with the arrays, and meanwhile `.found` with the rest.
        dataset, input_len, num_chunks: see evaluators.chunks.
    """

    stem: str
    engine: str
    settings: EngineSettings
    tokenizer: str
    dataset: str
    input_len: int
    num_chunks: int

    @property
    def arrays(self) -> Path:
        return Path(f"{self.stem}.npz")

    @property
    def found(self) -> Path:
        return Path(f"{self.stem}.found")


@dataclass(frozen=True)
class Found:
    """How an arm's process ended, and what it measured."""

    status: str
    error: str | None = None
    labels: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)


def run(job: Job) -> Found:
    """Run a job in a process of its own, its progress on this one's standard error.

    Returns:
        What it found; `failed` with the reason where it broke down, whatever way it did.
    """
    file = Path(f"{job.stem}.job")
    records.write_json(file, asdict(job))
    try:
        # its own output goes beside the progress bar; whatever ends this process ends it as well
        with exits.terminable():
            done = subprocess.run([sys.executable, "-m", "moe_eval.arm", str(file)], stdout=sys.stderr, check=False)
    finally:
        file.unlink(missing_ok=True)
    if not job.found.is_file():
        return Found("failed", f"its process ended with code {done.returncode} and left no result")
    found = Found(**json.loads(job.found.read_text(encoding="utf-8")))
    job.found.unlink()
    return found


def main(argv: list[str]) -> int:
    """What the process does."""
    raw = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    job = Job(**{**raw, "settings": EngineSettings(**raw["settings"])})
    job.found.unlink(missing_ok=True)
    try:
        found = _measured(job)
    except (UsageError, EngineError, KeyboardInterrupt) as error:
        reason = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error)
        records.write_json(job.found, asdict(Found("failed", reason)))
        return exits.settle(error)
    except BaseException as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:1000]
        records.write_json(job.found, asdict(Found("failed", reason)))
        raise
    records.write_json(job.found, asdict(found))
    return 0


def _measured(job: Job) -> Found:
    from tqdm import tqdm

    from moe_eval import engines
    from moe_eval.evaluators import chunks, perplexity
    from moe_eval.harness import tokens

    pages = chunks.pages(job.dataset)
    tokenizer = tokens.load(job.tokenizer, job.settings)
    engine = engines.load(job.engine, job.settings, tokenizer)
    try:
        tokens.check(tokenizer, engine)
        bos = tokenizer.bos_token_id
        prefix = int(tokenizer.eos_token_id if bos is None else bos)
        cut = chunks.cut(
            pages, lambda text: list(tokenizer.encode(text, verbose=False)), prefix, job.input_len, job.num_chunks
        )
        with tqdm(total=len(cut.windows), desc=f"{engine.facts.precision} on {job.engine}", unit="window") as bar:
            scores = perplexity.measure(engine, cut, done=lambda *_: bar.update())
        scores.save(job.arrays)
        labels = {"engine": asdict(engine.facts), "prefix_token_id": prefix, "tokenizer": job.tokenizer}
        data = {
            "dataset": job.dataset,
            "dataset_digest": cut.digest,
            "input_len": cut.input_len,
            "num_chunks": len(cut.windows),
            "of_chunks": cut.total,
        }
        return Found("finished", labels=labels, figures=data | perplexity.figures(scores, cut))
    finally:
        engine.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
