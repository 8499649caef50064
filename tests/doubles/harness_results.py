"""Results and samples as lm-eval's own `--output_path DIR --log_samples` writes them, with scores of a test's own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DATE = "2026-01-02T03-04-05.678901"


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def sample(number: int, scores: Mapping[str, Any], prompt: str = "", **changes: Any) -> dict[str, Any]:
    prompt = prompt or f"question {number}"
    return {
        "doc_id": number,
        "doc": {"question": f"question {number}"},
        "target": "0",
        "arguments": {"gen_args_0": {"arg_0": prompt, "arg_1": {"until": ["."]}}},
        "resps": [["text"]],
        "filtered_resps": ["text"],
        "filter": "none",
        "metrics": [*scores],
        "doc_hash": digest(f"question {number}"),
        "prompt_hash": digest(prompt),
        "target_hash": digest("0"),
        **scores,
        **changes,
    }


def write(
    folder: Path,
    tasks: Mapping[str, Sequence[float]],
    *,
    date: str = DATE,
    metric: str = "acc",
    prompts: str = "",
    groups: Mapping[str, tuple[Sequence[str], float]] | None = None,
    config: Mapping[str, Any] | None = None,
    higher: bool | None = True,
) -> Path:
    """One model's folder: tasks by name with the score of every document, groups with their tasks and score."""
    folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    for name, scores in tasks.items():
        results[name] = {"alias": name, f"{metric},none": sum(scores) / len(scores), f"{metric}_stderr,none": "N/A"}
        lines = [
            json.dumps(sample(at, {metric: score}, prompts and f"{prompts} {at}")) for at, score in enumerate(scores)
        ]
        (folder / f"samples_{name}_{date}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name, (_, score) in (groups or {}).items():
        results[name] = {"alias": name, f"{metric},none": score}
    content = {
        "results": results,
        "group_subtasks": {name: list(names) for name, (names, _) in (groups or {}).items()},
        "versions": dict.fromkeys(results, 1.0),
        "n-shot": dict.fromkeys(results, 0),
        "higher_is_better": {name: {metric: higher} for name in results},
        "n-samples": {
            name: {"original": max(1319, len(scores)), "effective": len(scores)} for name, scores in tasks.items()
        },
        "config": {"model": "hf", "model_args": f"pretrained=org/{folder.name}", "random_seed": 0, **(config or {})},
        "date": 1.0,
        "model_source": "hf",
        "model_name": f"org/{folder.name}",
    }
    (folder / f"results_{date}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder
