"""The harness's --use_cache: one file for several arms, and every arm its own answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from moe_eval.engines.transformers.engine import TransformersEngine
from moe_eval.errors import UsageError
from moe_eval.harness import cache, settings
from moe_eval.harness.model import MoeLM

TASKS = ["cloze_local", "generate_local", "pages_local"]
SCORED = ["cloze_local", "pages_local"]
Evaluate = Callable[..., Any]
Copy = Callable[[], Path]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def arm(evaluate: Evaluate, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Run a checkpoint in a dtype, with the one cache file of the test unless told otherwise."""

    def run(folder: Path, dtype: str = "float32", tasks: Sequence[str] = SCORED, cached: bool = True) -> dict[str, Any]:
        arguments = f"pretrained={folder},engine=transformers,dtype={dtype},track=off"
        cache = str(tmp_path / "cache") if cached else None
        results = evaluate("trtllm_moe", arguments, tasks=list(tasks), use_cache=cache)
        return {task: [row["resps"] for row in results["samples"][task]] for task in tasks}

    return run


def perturb(folder: Path) -> None:
    """Change one weight tensor enough to change every answer."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"] = weights["model.norm.weight"] * 1.5
    save_file(weights, file, metadata={"format": "pt"})


def test_two_checkpoints_and_two_dtypes_share_a_cache_file_and_no_answer(arm: Any, checkpoint_copy: Copy) -> None:
    first, second = checkpoint_copy(), checkpoint_copy()
    perturb(second)
    arms = [(first, "float32"), (second, "float32"), (first, "bfloat16")]
    alone = [arm(*settings, cached=False) for settings in arms]
    assert [arm(*settings) for settings in arms] == alone
    assert [arm(*settings) for settings in arms] == alone
    scores = [json.dumps(answers["pages_local"]) for answers in alone]
    assert len(set(scores)) == len(arms)


def test_weights_changed_in_place_are_another_arm(arm: Any, checkpoint_copy: Copy) -> None:
    folder = checkpoint_copy()
    before = arm(folder)
    perturb(folder)
    assert arm(folder) == arm(folder, cached=False) != before


def test_the_same_arm_reads_its_answers_from_the_cache(
    arm: Any, checkpoint_copy: Copy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = checkpoint_copy()
    first = arm(folder, tasks=TASKS)

    def called(*_: Any, **__: Any) -> None:
        pytest.fail("the engine was asked for what is in the cache")

    monkeypatch.setattr(TransformersEngine, "score", called)
    monkeypatch.setattr(TransformersEngine, "generate", called)
    assert arm(folder, tasks=TASKS) == first
    records = [json.loads(file.read_text()) for file in tmp_path.glob("benchmark_results/*/record.json")]
    [scored] = [record for record in records if "quality/token_ppl" in record["metrics"]]
    [cached] = [record for record in records if record is not scored]
    assert cached["metrics"]["quality/word_ppl"] == scored["metrics"]["quality/word_ppl"]
    assert any("read from the cache" in note for note in cached["notes"])


def test_what_was_scored_before_a_run_broke_off_is_not_scored_again(
    arm: Any, checkpoint_copy: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint_copy()
    with monkeypatch.context() as patch:
        patch.setattr(TransformersEngine, "generate", lambda _, prompts, *__: prompts and 1 / 0)
        with pytest.raises(ZeroDivisionError):
            arm(folder, tasks=TASKS)
    whole = arm(folder, tasks=TASKS, cached=False)
    window_counts: list[int] = []
    score = TransformersEngine.score

    def counted(engine: Any, windows: Any, **options: Any) -> Any:
        window_counts.append(len(windows))
        return score(engine, windows, **options)

    monkeypatch.setattr(TransformersEngine, "score", counted)
    assert arm(folder, tasks=TASKS) == whole
    assert window_counts == [3], "three pages; the three clozes were scored before"


def test_identity_is_of_what_may_change_an_answer(moe: MoeLM) -> None:
    def identity(**arguments: Any) -> str:
        return cache.identity(settings.read(arguments), moe.facts)

    plain = identity()
    assert identity(batch_size=4, max_batch_size=8, track="off") == plain
    different = [{"dtype": "float16"}, {"max_length": 64}, {"add_bos_token": True}, {"prefix_token_id": 1}]
    assert len({plain, *(identity(**arguments) for arguments in different)}) == 5
    assert cache.identity(settings.read({}), replace(moe.facts, fingerprint="0")) != plain


def test_store_of_another_kind_is_refused(moe: MoeLM) -> None:
    with pytest.raises(UsageError, match="--use_cache"):
        cache.of_this_arm(SimpleNamespace(dbdict={}), "arm")
