"""What --model_args are read as, and which of them are refused."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from moe_eval.checkpoint.shipped import SHIPPED
from moe_eval.engines import registry
from moe_eval.engines.base import EngineSettings
from moe_eval.errors import UsageError
from moe_eval.harness import settings
from moe_eval.harness.model import MoeLM

TRANSFORMERS = {"pretrained": str(SHIPPED), "engine": "transformers"}
without_trtllm = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_llm") is not None, reason="TensorRT-LLM is installed"
)


def test_nothing_named_is_the_shipped_model_on_transformers() -> None:
    model = settings.read({})
    assert model.shipped
    assert model.engine == "transformers"
    assert model.tokenizer == model.of_engine.checkpoint == str(SHIPPED)


def test_defaults() -> None:
    model = settings.read(TRANSFORMERS)
    assert not model.shipped
    assert model.of_engine == EngineSettings(str(SHIPPED))
    assert (model.max_gen_toks, model.add_bos_token, model.prefix_token_id) == (256, None, None)
    assert (model.enable_thinking, model.track) == (None, True)
    assert model.arguments == TRANSFORMERS


def test_every_argument_arrives_where_it_belongs() -> None:
    arguments = {
        **TRANSFORMERS,
        **{"precision": "bf16", "dtype": "bfloat16", "device": "cpu", "max_length": "128", "batch_size": "8"},
        **{"revision": "main", "trust_remote_code": True, "tokenizer": "other", "max_gen_toks": "32"},
        **{"add_bos_token": "true", "prefix_token_id": "7", "enable_thinking": "off", "track": "off"},
        **{"moe_backend": "eager", "max_tokens_per_batch": 512},
    }
    model = settings.read(arguments)
    assert model.of_engine == EngineSettings(
        checkpoint=str(SHIPPED),
        precision="bf16",
        dtype="bfloat16",
        device="cpu",
        max_length=128,
        batch_size=8,
        revision="main",
        trust_remote_code=True,
        options={"moe_backend": "eager", "max_tokens_per_batch": 512},
    )
    assert (model.tokenizer, model.max_gen_toks) == ("other", 32)
    assert (model.add_bos_token, model.prefix_token_id) == (True, 7)
    assert (model.enable_thinking, model.track) == (False, False)
    assert model.arguments == arguments


def test_arguments_of_none_count_as_not_given() -> None:
    assert settings.read({"pretrained": None, "engine": None, "batch_size": None}) == settings.read({})


def test_transformers_without_a_model_is_the_shipped_one() -> None:
    assert settings.read({"engine": "transformers"}).shipped


@pytest.mark.parametrize("engine", ["trtllm", "vllm"])
def test_another_engine_without_a_model_is_refused(engine: str) -> None:
    with pytest.raises(UsageError, match=rf"engine={engine} needs a checkpoint\. Add pretrained="):
        settings.read({"engine": engine})


@without_trtllm
@pytest.mark.parametrize("arguments", [{}, {"engine": "trtllm"}])
def test_model_without_an_engine_goes_to_trtllm_and_says_how_to_install_it(arguments: dict[str, str]) -> None:
    with pytest.raises(UsageError) as caught:
        settings.read({"pretrained": str(SHIPPED), **arguments})
    assert "moe-eval[trtllm]" in str(caught.value)
    assert "engine=transformers" in str(caught.value)


def test_model_without_an_engine_goes_to_trtllm_where_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "check", lambda name: registry.ENGINES[name])
    model = settings.read({"pretrained": str(SHIPPED)})
    assert (model.engine, model.shipped) == ("trtllm", False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"engine": "onnx"}, "engine 'onnx'"),
        ({"precision": "int4"}, "precision 'int4'"),
        ({"track": "maybe"}, "track=maybe"),
        ({"add_bos_token": "perhaps"}, "add_bos_token=perhaps"),
        ({"max_length": "long"}, "max_length=long"),
        ({"max_length": "1e3"}, "max_length=1e3"),
        ({"max_gen_toks": "many"}, "max_gen_toks=many"),
        ({"max_gen_toks": 0}, "max_gen_toks=0"),
        ({"prefix_token_id": "bos"}, "prefix_token_id=bos"),
        ({"batch_size": "many"}, "batch_size=many"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": "auto", "max_batch_size": 0}, "max_batch_size=0"),
        ({"pretrained": "/nowhere/model"}, "/nowhere/model"),
        ({"pretrained": str(SHIPPED / "config.json")}, "is a file"),
        ({"pretrained": str(SHIPPED.parent)}, "no config.json"),
    ],
)
def test_value_that_makes_no_sense_is_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        settings.read({**TRANSFORMERS, **arguments})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32", "fp8", "fp8_block", "nvfp4"])
def test_every_precision_has_a_name_here(precision: str) -> None:
    assert settings.read({**TRANSFORMERS, "precision": precision}).of_engine.precision == precision


@pytest.mark.parametrize(
    ("arguments", "rows"),
    [
        ({"batch_size": 4}, 4),
        ({"batch_size": "4"}, 4),
        ({"batch_size": "auto"}, None),
        ({"batch_size": "auto:4"}, None),
        ({"batch_size": "auto", "max_batch_size": 16}, 16),
        ({"max_batch_size": 16}, 16),
        ({"batch_size": 4, "max_batch_size": 16}, 4),
    ],
)
def test_batch_size_bounds_the_sequences_of_a_batch(arguments: dict[str, Any], rows: int | None) -> None:
    assert settings.read(arguments).of_engine.batch_size == rows


@pytest.mark.parametrize(
    ("text", "value"),
    [("on", True), ("off", False), ("true", True), ("false", False), ("True", True), (True, True), (False, False)],
)
def test_switches(text: str | bool, value: bool) -> None:
    assert settings.read({"track": text}).track is value


@pytest.fixture
def constructed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What MoeLM is constructed with."""
    arguments: dict[str, Any] = {}
    monkeypatch.setattr(MoeLM, "__init__", lambda _, **options: arguments.update(options))
    return arguments


def test_model_args_win_over_the_command_s_defaults(constructed: dict[str, Any]) -> None:
    command = {"batch_size": 1, "max_batch_size": None, "device": "cuda:0"}
    MoeLM.create_from_arg_obj({"batch_size": 8, "pretrained": "model"}, command)
    assert constructed == {"batch_size": 8, "device": "cuda:0", "pretrained": "model"}


def test_model_args_win_over_the_command_s_defaults_as_text(constructed: dict[str, Any]) -> None:
    command = {"batch_size": "1", "max_batch_size": 4, "device": None}
    MoeLM.create_from_arg_string("batch_size=auto,track=off,max_length=64", command)
    assert constructed == {"batch_size": "auto", "max_batch_size": 4, "track": "off", "max_length": 64}


def test_no_arguments_at_all(constructed: dict[str, Any]) -> None:
    MoeLM.create_from_arg_string("")
    MoeLM.create_from_arg_obj({}, None)
    assert constructed == {}
