"""A finished run of two arms in its folder, made from records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moe_eval.cli.conclude import conclude
from moe_eval.records.by_arm import ArmRecords
from moe_eval.records.run import Skipped
from tests.doubles import recorded_arms as made

BF16_MS = {1: [[100.0, 101.0]] * 3, 8: [[200.0, 202.0]] * 3}
FP8_MS = {1: [[90.0, 91.0]] * 3, 8: [[150.0, 151.0]] * 3}


def recorded_run(folder: Path, skipped: Sequence[Skipped] = (), names: Sequence[str] = ("bf16", "fp8")) -> Path:
    """BF16 and FP8 with latency and quality, the comparison and the report.

    Args:
        skipped: what the run says that it left out. `names`: of the arms that it planned.
    """
    folder.mkdir()
    arms = []
    for name, times, worse in (("bf16", BF16_MS, 0.0), ("fp8", FP8_MS, 0.01)):
        scores = made.scores(worse)
        scores.save(folder / f"ppl_{name}_sm90.npz")
        arms.append(ArmRecords(name, name, made.latency(name, times), made.quality(name, scores)))
    made.write(folder, arms, record=made.run(names, ("quality", "latency"), skipped=tuple(skipped)))
    conclude(folder, "run")
    return folder
