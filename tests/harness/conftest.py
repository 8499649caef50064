"""The shipped model under the harness's own `hf` model, which is the oracle here, and under ours."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Entry, TaskIndex

from moe_eval.checkpoint.shipped import SHIPPED
from moe_eval.harness.model import MoeLM
from tests.harness.running import Command, Ended

Requests = Callable[..., list[Instance]]


@pytest.fixture(scope="session", autouse=True)
def _few_tasks() -> Iterator[None]:
    """The harness reads 14,000 task files for every TaskManager; here those of one task of its own suffice."""
    build, folder = TaskIndex.build, Path(lm_eval.tasks.__file__).parent

    def build_few(paths: Iterable[Path], **options: Any) -> dict[str, Entry]:
        return build([path / "wikitext" if path == folder else path for path in map(Path, paths)], **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaskIndex, "build", staticmethod(build_few))
        yield


@pytest.fixture(scope="session")
def requests_of() -> Requests:
    """Make the harness's requests of one type, one for each tuple of arguments."""

    def make(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
        return [
            Instance(request_type=kind, doc={}, arguments=values, idx=0, metadata=("test_task", index, 1))
            for index, values in enumerate(arguments)
        ]

    return make


# With its logits cache, HFLM 0.4.13 scores the wrong positions of requests that read the same tokens and whose
# continuations differ in length.
_HF: Mapping[str, Any] = {"batch_size": 4, "logits_cache": False}


@pytest.fixture(scope="session")
def hf() -> HFLM:
    return HFLM(str(SHIPPED), dtype="float32", device="cpu", **_HF)


@pytest.fixture(scope="session")
def moe() -> MoeLM:
    return MoeLM(pretrained=str(SHIPPED), engine="transformers", dtype="float32", track=False)


@pytest.fixture(scope="session")
def hf_like(hf: HFLM) -> Callable[..., HFLM]:
    """Make another HFLM over the same loaded weights."""

    def make(tokenizer: Any = None, **arguments: Any) -> HFLM:
        return HFLM(hf.model, tokenizer=str(tokenizer or SHIPPED), **_HF, **arguments)

    return make


@pytest.fixture(scope="session")
def moe_like() -> Callable[..., MoeLM]:
    """Load another MoeLM of the same checkpoint."""

    def make(**arguments: Any) -> MoeLM:
        return MoeLM(
            **{"pretrained": str(SHIPPED), "engine": "transformers", "dtype": "float32", "track": False, **arguments}
        )

    return make


@pytest.fixture(scope="session")
def checkpoint_copy(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Copy the shipped checkpoint to a folder of its own."""
    return lambda: Path(shutil.copytree(SHIPPED, tmp_path_factory.mktemp("checkpoint") / "model"))


def _bos_tokenizer(folder: Path, adds_bos: bool) -> Path:
    """The shipped tokenizer with `<s>` in place of its last token as BOS."""
    content = json.loads((SHIPPED / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary: dict[str, int] = content["model"]["vocab"]
    last = max(vocabulary, key=lambda token: vocabulary[token])
    number = vocabulary.pop(last)
    content["model"]["merges"].pop()
    content["added_tokens"].append({**content["added_tokens"][0], "id": number, "content": "<s>"})
    if adds_bos:
        content["post_processor"]["single"].insert(0, {"SpecialToken": {"id": "<s>", "type_id": 0}})
        content["post_processor"]["special_tokens"] = {"<s>": {"id": "<s>", "ids": [number], "tokens": ["<s>"]}}
    config: Mapping[str, Any] = json.loads((SHIPPED / "tokenizer_config.json").read_text(encoding="utf-8"))
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "bos_token": "<s>"}), encoding="utf-8")
    return folder


@pytest.fixture(scope="session", params=[False, True], ids=["bos_named", "bos_added_by_tokenizer"])
def bos_tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _bos_tokenizer(tmp_path_factory.mktemp("tokenizer"), request.param)


_PROCESS = "lm_eval.tasks.wikitext.preprocess_wikitext"
_TASKS = {
    "choice_local": """
output_type: multiple_choice
doc_to_text: "Question : {{question}} \\nAnswer :"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "generate_local": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: " the sun"
generation_kwargs: {until: ["."], max_gen_toks: 6, do_sample: false}
metric_list: [{metric: exact_match}]
""",
    "cloze_local": """
output_type: loglikelihood
doc_to_text: "{{question}}"
doc_to_target: " {{choices[0]}}"
metric_list: [{metric: perplexity}, {metric: acc}]
""",
    "pages_local": f"""
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
process_results: !function {_PROCESS}.process_results
metric_list: [{{metric: word_perplexity}}, {{metric: byte_perplexity}}, {{metric: bits_per_byte}}]
""",
}
_ROWS = (
    ("The shadow of a sundial falls on", ["the surface", "a zebra of glass"], 0),
    ("The Earth turns once", ["in a year", "a day"], 1),
    ("A gnomon is", ["the part that casts the shadow", "a fish", "naïve 東京"], 0),
)


@pytest.fixture(scope="session")
def task_manager(tmp_path_factory: pytest.TempPathFactory) -> TaskManager:
    """A task of the harness, those of moe_eval, and one task of every request type over a local file."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [{"question": q, "choices": c, "answer": a, "page": q} for q, c, a in _ROWS]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for name, body in _TASKS.items():
        head = (
            f"task: {name}\ndataset_path: json\ntest_split: test\nmetadata: {{version: 1.0}}\ndataset_kwargs:\n"
            f"  data_files: {{test: {folder / 'rows.jsonl'}}}\n  cache_dir: {folder / 'cache'}\n"
        )
        (folder / f"{name}.yaml").write_text(head + body, encoding="utf-8")
    return TaskManager(include_path=str(folder))


@pytest.fixture(scope="session")
def evaluate(task_manager: TaskManager) -> Iterator[Callable[..., Any]]:
    """simple_evaluate with the tasks above, without what takes its time: bootstrap errors and a list from pip."""

    def run(model: Any, model_args: str | None = None, **options: Any) -> Any:
        arguments = {"task_manager": task_manager, "bootstrap_iters": 0, **options}
        return lm_eval.simple_evaluate(model=model, model_args=model_args, **arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lm_eval.evaluator.add_env_info", lambda _: None)
        yield run


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Command:
    """Run lm_eval in an empty folder, in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda _: None)  # a list from pip, which takes seconds
    monkeypatch.setattr("lm_eval.__main__.setup_logging", lambda: None)  # it would hold on to the captured stream

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["lm_eval", *arguments])
        code: int | str | None = 0
        handler = logging.StreamHandler()
        logging.getLogger("lm_eval").addHandler(handler)
        try:
            cli_evaluate()
        except SystemExit as stop:
            code = stop.code
        finally:
            logging.getLogger("lm_eval").removeHandler(handler)
        return Ended(code, *capfd.readouterr())

    return run
