"""The names that the engine relies on, against every double."""

from __future__ import annotations

import importlib

import pytest

from moe_eval.engines.trtllm import contract
from moe_eval.engines.trtllm.arguments import NESTED
from tests.engines.trtllm.conftest import ALL, NEWEST


@ALL
def test_no_double_differs_from_the_contract(double: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(contract.differences(double)) == []
    assert contract.main() == 0
    assert capsys.readouterr().out.splitlines()[0] == f"TensorRT-LLM {double}"


@NEWEST
def test_what_differs_is_named(
    double: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package = importlib.import_module("tensorrt_llm")
    fields = dict(package.llmapi.MoeConfig.model_fields)
    del fields["backend"]
    monkeypatch.setattr(package.llmapi.MoeConfig, "__pydantic_fields__", {**fields, "tactic": fields["max_num_tokens"]})
    assert contract.main() == 1
    printed = capsys.readouterr().out
    assert "- tensorrt_llm.llmapi.MoeConfig has no backend (read in llmapi/llm_args.py)" in printed
    assert "- tensorrt_llm.llmapi.MoeConfig has tactic, which was expected >=1.4.0rc4" in printed


def test_settings_of_nested_configurations_are_in_the_contract() -> None:
    stated = {row.name for row in contract.names() if row.kind == "field"}
    assert {field for _, field in NESTED.values()} <= stated
    assert all(row.source for row in contract.names())
