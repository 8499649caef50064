"""The tasks evaluator on a loaded engine: scores by document equal those of the harness's own `hf` model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from moe_eval.data import harness_tasks
from moe_eval.data.harness_tasks import TaskOptions
from moe_eval.engines.base import EngineSettings
from moe_eval.engines.endpoint.load import Endpoint, load
from moe_eval.errors import EngineError
from moe_eval.evaluators import answers, tasks
from moe_eval.evaluators.endpoint_model import endpoint_model, failures
from moe_eval.evaluators.engine_model import EngineLM
from moe_eval.evaluators.tasks import Place
from moe_eval.harness.model import MoeLM
from moe_eval.imports import harness_samples
from moe_eval.records.task_results import TaskResults
from tests.conftest import ROOT, SHIPPED
from tests.doubles.openai_server import NAME, Service, served

EXAMPLES = ROOT / "examples" / "tasks"
Evaluate = Callable[..., Any]


@pytest.fixture
def spec(task_manager: TaskManager, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """The file of a task, also of the examples, with a manager that reads few tasks."""
    folder = Path(str(task_manager.include_path[-1] if isinstance(task_manager.include_path, list) else ""))
    monkeypatch.setattr(harness_tasks, "_manager", lambda has_all: task_manager)

    def find(name: str) -> str:
        files = [parent / f"{name}.yaml" for parent in (folder, EXAMPLES)]
        return next((str(file) for file in files if file.is_file()), name)

    return find


def results(folder: Path, task: str) -> TaskResults:
    return next(entry for entry in harness_samples.read(folder).tasks if entry.task == task)


def place(folder: Path) -> Place:
    return Place(folder / "tasks", folder / "answers.jsonl")


CASES = [
    ("choice_local", TaskOptions(())),
    ("choice_local", TaskOptions((), num_fewshot=2)),
    ("choice_local", TaskOptions((), apply_chat_template=True, num_fewshot=1)),
    ("cloze_local", TaskOptions(())),
    ("pages_local", TaskOptions(())),
    ("generate_local", TaskOptions(())),
    ("generate_local", TaskOptions((), gen_kwargs={"max_gen_toks": 3, "until": ["e"]})),
    ("choose_word", TaskOptions((), limit=24)),
    ("write_word", TaskOptions((), limit=0.1)),
    ("moe_sample", TaskOptions((), limit=3)),
]


@pytest.fixture
def oracle(evaluate: Evaluate, hf: HFLM) -> Callable[[str, TaskOptions], Any]:
    """The harness's evaluation of its own model."""

    def run(spec: str, options: TaskOptions) -> Any:
        return evaluate(
            hf,
            tasks=[spec],
            limit=options.limit,
            num_fewshot=options.num_fewshot,
            apply_chat_template=options.apply_chat_template,
            gen_kwargs=dict(options.gen_kwargs) or None,
        )

    return run


@pytest.mark.parametrize("case", CASES, ids=str)
def test_documents_score_as_with_hf(
    case: tuple[str, TaskOptions],
    spec: Callable[[str], str],
    moe: MoeLM,
    oracle: Callable[[str, TaskOptions], Any],
    tmp_path: Path,
) -> None:
    name, options = case
    summary = tasks.evaluate(EngineLM(moe.engine, moe.tokenizer), moe.facts, spec(name), options, place=place(tmp_path))
    theirs = oracle(spec(name), options)
    (task,) = theirs["samples"]
    mine = results(tmp_path / "tasks", task)
    by_document: dict[int, dict[str, Any]] = {}
    for row in theirs["samples"][task]:
        scores = {f"{metric},{row['filter']}": row[metric] for metric in row["metrics"]}
        by_document.setdefault(row["doc_id"], {**row, "scores": {}})["scores"] |= scores
    assert summary.documents == len(mine.documents) == len(by_document) > 2
    for document in mine.documents:
        row = by_document[document.number]
        hashes = (row["doc_hash"], row["prompt_hash"], row["target_hash"])
        assert (document.document, document.prompt, document.target) == hashes
        for key, score in document.scores.items():
            value = row["scores"][key]
            sides = (score.value, score.weight) if isinstance(value, (list, tuple)) else score.value
            assert sides == pytest.approx(tuple(value) if isinstance(value, (list, tuple)) else float(value), rel=1e-4)
    for key, metric in mine.metrics.items():
        assert metric.score == pytest.approx(theirs["results"][task][key], rel=1e-4)


class Killed(EngineLM):
    """A loaded engine whose process is killed after so many answers."""

    left = 10**9
    heard = 0

    def set_cache_hook(self, cache_hook: Any) -> None:
        hear = cache_hook.add_partial

        def counted(*arguments: Any) -> None:
            if not self.left:
                raise KeyboardInterrupt
            self.left, self.heard = self.left - 1, self.heard + 1
            hear(*arguments)

        super().set_cache_hook(cache_hook)
        self.cache_hook = type("Hook", (), {"add_partial": staticmethod(counted)})


@pytest.mark.parametrize("name", ["choice_local", "pages_local", "generate_local"])
def test_a_killed_evaluation_goes_on_with_the_documents_that_are_missing(
    name: str, spec: Callable[[str], str], moe: MoeLM, tmp_path: Path
) -> None:
    whole = Killed(moe.engine, moe.tokenizer)
    tasks.evaluate(whole, moe.facts, spec(name), TaskOptions(()), place=place(tmp_path / "whole"))
    killed = Killed(moe.engine, moe.tokenizer)
    killed.left = 2
    with pytest.raises(KeyboardInterrupt):
        tasks.evaluate(killed, moe.facts, spec(name), TaskOptions(()), place=place(tmp_path))
    with (tmp_path / "answers.jsonl").open("a", encoding="utf-8") as torn:
        torn.write('{"task": "x", "docum')
    again = Killed(moe.engine, moe.tokenizer)
    summary = tasks.evaluate(again, moe.facts, spec(name), TaskOptions(()), place=place(tmp_path))
    assert (summary.answered_before, again.heard) == (2, whole.heard - 2)
    sides = [results(folder / "tasks", name).documents for folder in (tmp_path, tmp_path / "whole")]
    assert [row.answer[:4] for row in sides[0]] == [row.answer[:4] for row in sides[1]]
    scores = [[score.value for row in side for score in row.scores.values()] for side in sides]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5), "other batches"
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert {(line["task"], line["document"]) for line in lines} == {(name, number) for number in range(3)}
    assert len(lines) == whole.heard


def test_one_request_asked_several_times_has_as_many_answers(
    requests_of: Callable[..., list[Any]], tmp_path: Path
) -> None:
    class Counting:
        calls = 0

        def set_cache_hook(self, hook: Any) -> None:
            self.hook = hook

        def generate_until(self, requests: list[Any]) -> list[str]:
            self.calls += len(requests)
            return [f"answer {self.calls - at}" for at in range(len(requests))]

    same = requests_of("generate_until", *[("text", {"do_sample": True})] * 3)
    model = Counting()
    first = answers.AnsweredModel(model, tmp_path / "a.jsonl").generate_until(same[:2])
    again = answers.AnsweredModel(model, tmp_path / "a.jsonl").generate_until(same)
    assert (len(set(again)), again[:2], model.calls) == (3, first, 3)


def test_a_score_that_is_no_number_fails_the_arm(
    spec: Callable[[str], str], moe: MoeLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = EngineLM(moe.engine, moe.tokenizer)
    monkeypatch.setattr(model, "loglikelihood", lambda requests: [(float("nan"), False)] * len(requests))
    with pytest.raises(Exception, match="are no numbers"):
        tasks.evaluate(model, moe.facts, spec("choice_local"), TaskOptions(()), place=place(tmp_path))


@pytest.fixture(scope="module", params=[1, 3], ids=["one_request_at_once", "three"])
def endpoint(hf: HFLM, request: pytest.FixtureRequest) -> Iterator[Endpoint]:
    """A server of the shipped model."""
    with served(Service(hf.model, hf.tokenizer)) as service:
        options = {"base_url": service.url, "tokenizer": str(SHIPPED), "max_length": 514}
        yield load(EngineSettings(NAME, options={**options, "num_concurrent": request.param}), None)


@pytest.mark.parametrize(
    "case",
    [("choice_local", None), ("cloze_local", None), ("pages_local", None), ("pages_local", 5), ("generate_local", 40)],
)
def test_an_endpoint_of_a_model_scores_as_the_model_on_an_engine(
    case: tuple[str, int | None], spec: Callable[[str], str], moe: MoeLM, endpoint: Endpoint, tmp_path: Path
) -> None:
    name, window = case
    sides = []
    for model, facts in (
        (EngineLM(moe.engine, moe.tokenizer, window=window), moe.facts),
        (endpoint_model(endpoint, window=window), endpoint.facts),
    ):
        folder = tmp_path / facts.name
        with failures(endpoint):
            tasks.evaluate(model, facts, spec(name), TaskOptions(()), place=place(folder))
        sides.append(results(folder / "tasks", name))
    for first, second in zip(sides[0].documents, sides[1].documents, strict=True):
        assert (first.document, first.prompt, first.target) == (second.document, second.prompt, second.target)
        for key, score in first.scores.items():
            assert second.scores[key].value == pytest.approx(score.value, rel=1e-4)
    assert harness_samples.read(tmp_path / "openai" / "tasks").precision == "not known"


def test_an_endpoint_that_breaks_goes_on_with_what_is_missing(
    spec: Callable[[str], str], hf: HFLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)  # of retries
    with served(Service(hf.model, hf.tokenizer, failing_after=2)) as service:
        options = {"base_url": service.url, "tokenizer": str(SHIPPED), "max_length": 514}
        broken = load(EngineSettings(NAME, options=options), None)
        with pytest.raises(EngineError, match=r"failed at a request.*500.*--resume"), failures(broken):
            tasks.evaluate(
                endpoint_model(broken), broken.facts, spec("choice_local"), TaskOptions(()), place=place(tmp_path)
            )
        service.failing_after = None
        summary = tasks.evaluate(
            endpoint_model(broken), broken.facts, spec("choice_local"), TaskOptions(()), place=place(tmp_path)
        )
    assert summary.answered_before == 2


def test_a_chat_endpoint_gets_chats(spec: Callable[[str], str], tmp_path: Path) -> None:
    with served(Service()) as service:
        endpoint = load(EngineSettings(NAME, options={"base_url": service.url, "chat": True}), None)
        options = TaskOptions((), apply_chat_template=True, num_fewshot=1)
        tasks.evaluate(
            endpoint_model(endpoint, 1), endpoint.facts, spec("generate_local"), options, place=place(tmp_path)
        )
    assert {row.answer for row in results(tmp_path / "tasks", "generate_local").documents} == {"heard 3"}
    assert [message["role"] for message in service.asked[0]["messages"]] == ["user", "assistant", "user"]
    assert service.asked[0]["seed"] == 1235, "of the second repeat"


def test_repeats_of_sampled_answers_have_other_seeds_and_the_same_prompts(
    spec: Callable[[str], str], moe: MoeLM, tmp_path: Path
) -> None:
    options = TaskOptions((), gen_kwargs={"do_sample": True, "temperature": 1.5, "max_gen_toks": 8})
    model = EngineLM(moe.engine, moe.tokenizer)
    for folder, repeat in (("first", 0), ("again", 0), ("first", 1)):
        own = Place(tmp_path / folder, tmp_path / f"{folder}{repeat}.jsonl")
        tasks.evaluate(model, moe.facts, spec("generate_local"), options, place=own, repeat=repeat)
    repeats = results(tmp_path / "first", "generate_local").documents
    assert sorted((row.number, row.repeat) for row in repeats) == [(at, repeat) for at in range(3) for repeat in (0, 1)]
    assert len({row.prompt for row in repeats}) == 3
    texts = [json.loads(line)["answer"] for line in (tmp_path / "first0.jsonl").read_text().splitlines()]
    others = [json.loads(line)["answer"] for line in (tmp_path / "first1.jsonl").read_text().splitlines()]
    again = [json.loads(line)["answer"] for line in (tmp_path / "again0.jsonl").read_text().splitlines()]
    assert texts == again
    assert texts != others
