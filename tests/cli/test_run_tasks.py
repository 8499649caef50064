"""`moe-eval run --tasks` on made-up arms: the plan, what is refused before a load, records, verdict and resume."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from lm_eval.tasks import TaskManager

from moe_eval.checkpoint.tokenizer import load
from moe_eval.data import harness_tasks
from tests.cli.commands import Command, Ended
from tests.conftest import SHIPPED
from tests.doubles.arm_process import Stage, number
from tests.doubles.openai_server import Service, served

COMMAND = ("run", "--precisions", "bf16,fp32", "--evaluators", "tasks")
CHOICE = """
task: words
custom_dataset: !function data.rows
output_type: multiple_choice
test_split: test
doc_to_text: "{{text}}"
doc_to_choice: ["a", "b"]
doc_to_target: 0
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
WRITE = CHOICE.replace("words", "writing").replace("multiple_choice", "generate_until").replace("acc", "exact_match")
DATA = """
from datasets import Dataset


def rows(**_):
    return {"test": Dataset.from_list([{"text": f"question {number}"} for number in range(10)])}
"""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two tasks of ten documents, and none of the harness's own tasks."""
    folder = tmp_path / "own"
    folder.mkdir()
    for name, text in (("words.yaml", CHOICE), ("writing.yaml", WRITE), ("data.py", DATA)):
        (folder / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(harness_tasks, "_manager", _few)
    return folder


def _few(*, has_all: bool) -> TaskManager:
    return TaskManager(include_path=[str(harness_tasks.tasks_folder())], include_defaults=False)


def refused(ended: Ended) -> str:
    assert ended.code == 2, ended.err
    assert "Traceback" not in ended.err
    assert not (ended.folder / "arms").exists(), "before a load"
    return ended.err.splitlines()[-1]


def test_arms_are_evaluated_and_compared_by_document(command: Command, files: Path) -> None:
    stage = Stage()
    ended = command("--tasks", f"{files / 'words.yaml'},moe_sample", "--limit", "10", stage=stage)
    assert ended.code == 0, ended.err
    assert "tasks of lm-eval: words (10 documents), moe_sample (10 documents)" in ended.out
    assert "No model was named" in ended.err
    assert [(request.arm, request.arguments["repeat"]) for request in stage.asked if request.task == "tasks"] == [
        (arm, 0) for arm in ("bf16", "fp32") for _ in range(2)
    ]
    record = json.loads((ended.folder / "tasks_fp32_cpu.json").read_text())
    assert (record["status"], record["labels"]["engine"]["precision"]) == ("finished", "fp32")
    assert {task["task"] for task in record["results"]["tasks"]} == {"moe_sample", "words"}
    (pair,) = json.loads((ended.folder / "comparison.json").read_text())["pairs"]
    sides = [[number(arm, "words", 0, document) < 0.5 for document in range(10)] for arm in ("bf16", "fp32")]
    losses = sum(before and not after for before, after in zip(*sides, strict=True))
    gains = sum(after and not before for before, after in zip(*sides, strict=True))
    (row,) = [row for row in pair["tasks"] if row["task"] == "words"]
    assert (row["flips"]["losses"], row["flips"]["gains"]) == (losses, gains)
    assert "words" in ended.out


def test_a_task_that_failed_is_evaluated_again_and_no_other(command: Command, files: Path) -> None:
    tasks = ("--tasks", f"{files / 'words.yaml'},{files / 'writing.yaml'}")
    ended = command(*tasks, stage=Stage(fails={("bf16", "tasks", 1): "it broke"}))
    assert ended.code == 1
    record = json.loads((ended.folder / "tasks_bf16_cpu.json").read_text())
    assert (record["status"], record["error"]) == ("failed", "it broke")
    assert [task["task"] for task in record["results"]["tasks"]] == ["words"]
    stage = Stage()
    again = command(*tasks, "--resume", stage=stage)
    assert again.code == 0, again.err
    specs = [request.arguments["spec"] for request in stage.asked if request.task == "tasks"]
    assert specs == [str(files / "writing.yaml")]
    answers = [request.arguments["answers"] for request in stage.asked if request.task == "tasks"]
    assert answers == [str(ended.folder / "arms" / "bf16" / "tasks_writing_0.answers.jsonl")]


def test_sampled_answers_are_repeated_with_other_seeds(command: Command, files: Path) -> None:
    sampled = ("--gen_kwargs", "do_sample=true,temperature=0.7", "--repeats", "3")
    stage = Stage()
    ended = command("--tasks", f"{files / 'words.yaml'},{files / 'writing.yaml'}", *sampled, stage=stage)
    assert ended.code == 0, ended.err
    repeats = [
        (Path(request.arguments["spec"]).stem, request.arguments["repeat"])
        for request in stage.asked
        if (request.arm, request.task) == ("bf16", "tasks")
    ]
    assert repeats == [("words", 0), ("writing", 0), ("writing", 1), ("writing", 2)], "choices are not sampled"
    options: dict[str, Any] = next(request.arguments["options"] for request in stage.asked if request.task == "tasks")
    assert options["gen_kwargs"] == {"do_sample": True, "temperature": 0.7}
    record = json.loads((ended.folder / "tasks_bf16_cpu.json").read_text())
    rows = {task["task"]: task["documents"] for task in record["results"]["tasks"]}
    assert sorted({row["repeat"] for row in rows["writing"]}) == [0, 1, 2]
    assert len(rows["writing"]) == 30


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--tasks", "moe_sampel"), "There is no task moe_sampel. Did you mean moe_sample?"),
        (("--tasks", "absent/mine.yaml"), "There is no file absent/mine.yaml."),
        (("--tasks", "OWN/includes.yaml"), "OWN/pipe.yaml is a pipe."),
        (("--tasks", "moe_latency"), "The task moe_latency is an evaluator here."),
        (("--tasks", "moe_sample,moe_sample"), "--tasks asks for moe_sample twice."),
        (("--tasks", "moe_sample", "--limit", "0"), "--limit 0 leaves no document."),
        (("--tasks", "moe_sample", "--repeats", "2"), "--repeats 2 is for sampled answers, and no task here samples."),
        (("--tasks", "moe_sample", "--gen_kwargs", "{"), "--gen_kwargs cannot be read."),
        (("--tasks", "moe_sample", "--gen_kwargs", '{"a":' * 3000), "--gen_kwargs cannot be read."),
        ((), "--evaluators has tasks, and --tasks names none."),
        (
            ("--tasks", "OWN/writing.yaml", "--gen_kwargs", "num_beams=4"),
            "num_beams=4 cannot be set, because beam search is not supported.",
        ),
        (("--tasks", "OWN/broken.yaml"), "The task OWN/broken.yaml cannot be built"),
        (("--tasks", "OWN/slash.yaml"), "The task of/words cannot name a file."),
        (("--tasks", "OWN/hub.yaml"), "The data set of OWN/hub.yaml cannot be fetched"),
        (("--tasks", "OWN/words.yaml", "--num_fewshot", "50"), "The task OWN/words.yaml cannot be built"),
    ],
)
def test_what_cannot_be_evaluated_is_told_before_a_load(
    arguments: tuple[str, ...], sentence: str, command: Command, files: Path
) -> None:
    (files / "broken.yaml").write_text(CHOICE.replace("{{text}}", "{{text"), encoding="utf-8")
    hub = CHOICE.replace("custom_dataset: !function data.rows", "dataset_path: nobody/has-such-a-data-set")
    (files / "hub.yaml").write_text(hub, encoding="utf-8")
    (files / "slash.yaml").write_text(CHOICE.replace("task: words", "task: of/words"), encoding="utf-8")
    (files / "includes.yaml").write_text("task: a\ninclude: pipe.yaml", encoding="utf-8")
    os.mkfifo(files / "pipe.yaml")
    words = [argument.replace("OWN", str(files)) for argument in arguments]
    assert sentence.replace("OWN", str(files)) in refused(command(*words))


ARM = f"fp32:checkpoint={SHIPPED},engine=transformers,precision=fp32"


@pytest.mark.parametrize(
    ("settings", "options", "sentence"),
    [
        ("model=tiny", ("--evaluators", "tasks,latency"), "server is a server, of which latency cannot be measured"),
        ("model=tiny", ("--evaluators", "quality,tasks"), "server is a server, of which quality cannot be measured"),
        ("model=tiny", (), "words scores log-likelihoods, for which server needs a tokenizer."),
        ("model=tiny,chat=true", (), "server is asked by chats. Add --apply_chat_template"),
        ("model=tiny,chat=true", ("--apply_chat_template",), "server is asked by chats and other arms by texts"),
        ("model=tiny", ("--apply_chat_template",), "--apply_chat_template needs a tokenizer. Give server tokenizer="),
        ("model=huge", (), "has no model huge. It has tiny."),
        ("", (), "The arm server names no model of its server. Give model=NAME."),
        ("model=tiny,api_key=sk-secret", (), "Leave api_key out of server, and set OPENAI_API_KEY."),
        ("model=tiny,tokeniser=x", (), "There is no setting tokeniser. Did you mean tokenizer?"),
        ("model=tiny,moe_backend=x", (), "There is no setting moe_backend."),
        ("model=tiny,precision=fp9", (), "fp9"),
    ],
)
def test_what_an_endpoint_cannot_be_asked_is_told_before_a_load(
    settings: str, options: tuple[str, ...], sentence: str, command: Command, files: Path
) -> None:
    with served(Service()) as service:
        arm = f"server:engine=openai,base_url={service.url},{settings}".rstrip(",")
        words = ["--arm", ARM, "--arm", arm, "--tasks", str(files / "words.yaml"), *options]
        ended = command(*words, defaults=("run", "--evaluators", "tasks"))
    assert sentence in refused(ended)
    assert "sk-secret" not in ended.out + ended.err


def test_an_endpoint_is_an_arm_that_says_what_is_not_known(command: Command, files: Path) -> None:
    stage = Stage()
    with served(Service()) as service:
        server = f"server:engine=openai,base_url={service.url},model=tiny,tokenizer={SHIPPED},max_length=100"
        tasks = ("--tasks", str(files / "words.yaml"))
        ended = command("--arm", ARM, "--arm", server, *tasks, stage=stage, defaults=("run", "--evaluators", "tasks"))
    assert ended.code == 0, ended.err
    assert "server: tasks; a server; openai, not known," in ended.out
    assert "No model was named" not in ended.err
    loads = {request.arm: request.load for request in stage.asked}
    assert loads["tiny"] is not None
    assert (loads["tiny"].tokenizer, loads["tiny"].settings.precision) == (None, None)
    windows = {request.arguments["window"] for request in stage.asked if request.task == "tasks"}
    assert windows == {98}, "all arms score in the smallest window"
    arm = json.loads((ended.folder / "run.json").read_text())["arms"]["server"]
    assert (arm["engine"], arm["checkpoint"], arm["precision"], arm["gpus"]) == ("openai", "tiny", "not known", [])


def test_an_endpoint_needs_an_arm(command: Command) -> None:
    ended = command("--engine", "openai", "--tasks", "moe_sample", defaults=("run",))
    assert "--engine openai is for arms. Give --arm NAME:engine=openai" in refused(ended)


def test_arms_that_are_timed_read_the_longest_prompt_whole(command: Command, files: Path) -> None:
    """Their window is that of the shapes, which would cut prompts of tasks."""
    text = DATA.replace("question {number}", "{'word ' * 20 * number}")
    (files / "data.py").write_text(text, encoding="utf-8")
    stage = Stage()
    shapes = ("--input_len", "8", "--output_len", "4", "--num_iterations", "1", "--dataset", "moe_sample")
    words = ("--evaluators", "latency", "--tasks", str(files / "writing.yaml"), *shapes)
    assert command(*words, stage=stage).code == 0
    tokens = len(load(str(SHIPPED), None, False).encode("word " * 180)) + 256  # the longest prompt, and an answer
    settings = [request.load.settings for request in stage.asked if request.load]
    assert {entry.max_length for entry in settings} == {entry.max_length for entry in settings if entry.max_length}
    assert all(tokens <= (entry.max_length or 0) < 2 * tokens for entry in settings)
    assert all((entry.kv_tokens or 0) >= (entry.max_length or 0) for entry in settings)
    stage = Stage()
    command("--tasks", str(files / "writing.yaml"), "--resume", "--output_dir", str(files / "alone"), stage=stage)
    assert {request.load.settings.max_length for request in stage.asked if request.load} == {None}
