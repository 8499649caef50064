"""The shipped model under the harness's own `hf` model, which is the oracle here, and under ours."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from moe_eval.harness.model import MoeLM
from moe_eval.harness.settings import SHIPPED

Requests = Callable[..., list[Instance]]


@pytest.fixture(scope="session")
def requests_of() -> Requests:
    """Make the harness's requests of one type, one for each tuple of arguments."""

    def make(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
        return [
            Instance(request_type=kind, doc={}, arguments=each, idx=0, metadata=("test_task", index, 1))
            for index, each in enumerate(arguments)
        ]

    return make


@pytest.fixture(scope="session")
def hf() -> HFLM:
    return HFLM(str(SHIPPED), dtype="float32", device="cpu", batch_size=4)


@pytest.fixture(scope="session")
def moe() -> MoeLM:
    return MoeLM(pretrained=str(SHIPPED), engine="transformers", dtype="float32", track=False)


@pytest.fixture(scope="session")
def hf_like(hf: HFLM) -> Callable[..., HFLM]:
    """Make another HFLM over the same loaded weights."""

    def make(tokenizer: Any = None, **arguments: Any) -> HFLM:
        return HFLM(hf.model, tokenizer=str(tokenizer or SHIPPED), batch_size=4, **arguments)

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
