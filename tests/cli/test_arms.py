"""Arms by name: what --arm and YAML say, what is refused in one sentence, and the plan that comes of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lm_eval.utils import simple_parse_args_string

from moe_eval.cli import arms as named_arms
from moe_eval.cli import main
from moe_eval.cli.arms import Common
from moe_eval.cli.options import arm_text
from moe_eval.cli.options.commands import RUN
from moe_eval.cli.options.measuring import RunOptions
from moe_eval.cli.request import recorded
from moe_eval.engines import registry, tables
from moe_eval.engines.trtllm import load
from moe_eval.engines.trtllm.arguments import NESTED, OWN
from moe_eval.errors import UsageError
from moe_eval.runner.request import NamedArm, SharedSettings
from tests.conftest import ROOT

SECRET = "hunter2-very-secret-token"
QWEN3 = json.loads((ROOT / "tests" / "checkpoint" / "published_configs.json").read_text())["Qwen3-30B-A3B"]
Plan = Callable[..., tuple[int, str, str]]


def read(*texts: str, engine: str = "vllm", **changes: Any) -> list[NamedArm]:
    paths = {"model": "M", "fp8": None, "nvfp4": None}
    common: dict[str, Any] = {"paths": paths, "options": {}, "of_engines": {}, "settings": SharedSettings(), **changes}
    return named_arms.named(
        texts, Common(engine=engine, check=registry.named, take_settings=lambda _: SharedSettings(), **common)
    )


@pytest.fixture
def qwen3(tmp_path: Path) -> Path:
    """The configuration of a model of 128 experts and 32 heads, without weights."""
    folder = tmp_path / "qwen3"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**QWEN3, "torch_dtype": "bfloat16"}))
    return folder


@pytest.fixture
def plan(qwen3: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Plan:
    """The plan of these options for two H100s, with exit code and messages."""

    def run(*options: str, gpu: str = "2xH100") -> tuple[int, str, str]:
        words = [
            "run",
            "--dry_run",
            "--gpu",
            gpu,
            "--engine",
            "vllm",
            "--model_path",
            str(qwen3),
            "--dataset",
            "random",
        ]
        words += ["--evaluators", "latency", "--output_dir", str(tmp_path / "out")]
        code = main([*words, *options])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


def test_settings_become_the_arm_s_own_by_the_engine_s_names() -> None:
    text = "tp2:precision=bf16,tensor_parallel_size=2,max_num_seqs=8,enforce_eager=true,env.NCCL_ALGO=Ring"
    (arm,) = read(text, options={"seed": 1})
    assert arm == NamedArm(
        "tp2",
        "vllm",
        "M",
        "bf16",
        {"seed": 1, "tensor_parallel_size": 2, "max_num_seqs": 8, "enforce_eager": True},
        SharedSettings(),
        {"NCCL_ALGO": "Ring"},
    )


def test_commas_in_brackets_and_quotes_belong_to_a_value() -> None:
    (arm,) = read('a:compilation_config={"mode": 3, "cudagraph_mode": "NONE"},max_num_seqs=8')
    assert arm.options == {"compilation_config": '{"mode": 3, "cudagraph_mode": "NONE"}', "max_num_seqs": 8}


@pytest.mark.parametrize(
    ("text", "engine", "options"),
    [
        ("a:expert_parallel=2", "vllm", {"tensor_parallel_size": 2, "enable_expert_parallel": True}),
        ("a:expert_parallel=true", "vllm", {"enable_expert_parallel": True}),
        ("a:expert_parallel=2", "trtllm", {"tensor_parallel_size": 2, "moe_expert_parallel_size": 2}),
        (
            "a:expert_parallel=true,tensor_parallel_size=4",
            "trtllm",
            {"tensor_parallel_size": 4, "moe_expert_parallel_size": 4},
        ),
        ("a:expert_parallel=false", "vllm", {}),
    ],
)
def test_expert_parallelism_is_spelled_as_the_engine_does(text: str, engine: str, options: dict[str, Any]) -> None:
    assert read(text, engine=engine)[0].options == options


def test_an_arm_named_after_a_precision_has_it_and_its_checkpoint() -> None:
    paths = {"model": "M", "fp8": "M8", "nvfp4": None}
    arms = read("bf16", "fp8:max_num_seqs=8", "x:precision=nvfp4", "y:checkpoint=Z", paths=paths)
    assert [(arm.precision, arm.checkpoint) for arm in arms] == [
        ("bf16", "M"),
        ("fp8", "M8"),
        ("nvfp4", "M"),
        (None, "Z"),
    ]


def test_model_arguments_are_the_harness_own_but_for_commas_in_brackets() -> None:
    plain = "a=1,b=0.5,c=True,d=none,e='7',f=x=y,"
    assert arm_text.model_args(plain) == {**simple_parse_args_string(plain), "f": "x=y"}
    nested = arm_text.model_args('worker=spawned,profiler_config={"profiler": "torch", "dirs": ["a", "b"]},n=2')
    assert json.loads(nested.pop("profiler_config")) == {"profiler": "torch", "dirs": ["a", "b"]}
    assert nested == {"worker": "spawned", "n": 2}
    text = 'profiler_config={"profiler": "torch", "dirs": ["a", "b"]},n=2'
    assert recorded(RunOptions(model_args=text))["model_args"] == text
    with pytest.raises(UsageError, match="--model_args has n twice"):
        arm_text.model_args("n=1,m={1,2}, n=2")


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        ((":max_num_seqs=8",), "An --arm has no name"),
        (("max_num_seqs=8",), "An --arm has no name"),
        (("a/b:max_num_seqs=8",), "'a/b' cannot name an arm"),
        (("ä",), "cannot name an arm"),
        ((".a",), "cannot name an arm"),
        (("a" * 65,), "cannot name an arm"),
        (("defaults",), "cannot name an arm"),
        (("a-again",), "Leave -again out"),
        (("a", "a:max_num_seqs=8"), "Two arms are called a"),
        (("a", "A:max_num_seqs=8"), "Two arms are called a"),
        (("a:max_num_seqs",), "The arm a has a setting without a value"),
        (("a:max_num_seqs=8,max_num_seqs=9",), "The arm a has max_num_seqs twice"),
        (("a:tensor_paralel_size=2",), "There is no setting tensor_paralel_size. Did you mean tensor_parallel_size?"),
        (("a:kv_cache_type=fp8",), "There is no setting kv_cache_type. Did you mean kv_cache_dtype?"),
        (("a:checkpiont=X",), "Did you mean checkpoint?"),
        (("a:zzzzzz=1",), "There is no setting zzzzzz. The arm a is on vllm"),
        (("a:engine=vlm",), "There is no engine 'vlm'"),
        (("a:engine=transformers,gpu_memory_utilization=0.9",), "There is no setting gpu_memory_utilization"),
        (("a:engine=transformers,expert_parallel=2",), "There is no expert parallelism|has no expert parallelism"),
        (("a:expert_parallel=2,tensor_parallel_size=4",), "has expert_parallel=2 and tensor_parallel_size=4"),
        (("a:expert_parallel=many",), "expert_parallel=many is not a whole number"),
        (("a:env.NCCL_ALGOS=Ring",), "no environment variable of an arm NCCL_ALGOS. Did you mean NCCL_ALGO?"),
        (("a:env.HOME=/",), "There is no environment variable of an arm HOME"),
        (("a:env.TRTLLM_ENABLE_PDL=1",), "TRTLLM_ENABLE_PDL means nothing to vllm"),
        (("a:checkpoint=X,pretrained=Y",), "has checkpoint and pretrained"),
        (("a:device=cpu",), "The arm a has a device, which is the same for all arms"),
        (("a:tokenizer=X",), "The arm a has a tokenizer"),
        (("fp8:precision=nvfp4",), "The arm fp8 has precision=nvfp4"),
    ],
)  # fmt: skip
def test_what_is_no_arm_is_refused_in_one_sentence_and_its_fix(texts: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence) as caught:
        read(*texts)
    assert "\n" not in str(caught.value)


def test_every_environment_variable_has_engines_an_effect_and_a_source() -> None:
    rows = tables.variables()
    assert len({row.name for row in rows}) == len(rows)
    for row in rows:
        assert set(row.engines) <= set(registry.ENGINES)
        assert row.engines
        assert row.does
        assert row.source


def test_settings_of_an_installed_version_are_read_from_its_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "engine_of_mine"
    (package / "engine").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    text = "class EngineArgs:\n    brand_new: int = 1\n    _own: int = 2\nclass Another:\n    elsewhere: int = 3\n"
    (package / "engine" / "arg_utils.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    names = tables.settings("vllm", "engine_of_mine")
    assert {"brand_new", "max_num_seqs"} <= names
    assert not {"_own", "elsewhere"} & names


YAML = {
    "mapping": """
arms:
  defaults: {tensor_parallel_size: 2, env: {NCCL_ALGO: Ring}}
  bf16: {tensor_parallel_size: 1}
  ep: {precision: fp8, enforce_eager: true, compilation_config: {mode: 3, cudagraph_mode: NONE}}
""",
    "list": """
arms:
  - defaults: {tensor_parallel_size: 2, env.NCCL_ALGO: Ring}
  - {name: bf16, tensor_parallel_size: 1}
  - name: ep
    precision: fp8
    enforce_eager: true
    compilation_config: {mode: 3, cudagraph_mode: NONE}
""",
}


@pytest.mark.parametrize("form", YAML)
def test_yaml_has_the_same_arms_with_shared_defaults(tmp_path: Path, form: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(YAML[form])
    options = RUN.read(["--config", str(file)])
    assert read(*options.arms) == read(
        "bf16:tensor_parallel_size=1,env.NCCL_ALGO=Ring",
        "ep:tensor_parallel_size=2,env.NCCL_ALGO=Ring,precision=fp8,enforce_eager=true,"
        'compilation_config={"mode": 3, "cudagraph_mode": "NONE"}',
    )
    again = RUN.read(["--config", str(file), "--arm", "a:max_num_seqs=8", "--arm", "b"])
    assert again.arms == ("a:max_num_seqs=8", "b"), "the command line wins"


@pytest.mark.parametrize("content", ["3", "[3]", "[{precision: fp8}]", "{a: 3}", "{a: {1: 2}}"])
def test_yaml_that_has_no_arms_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"arms: {content}\n")
    with pytest.raises(UsageError, match="arms has to be settings by the names of arms, or a list of arms"):
        RUN.read(["--config", str(file)])


def test_texts_are_read_back_as_they_were_written() -> None:
    settings = {"a": "x,y", "b": "1", "c": '{"d": [1, 2]}'}
    assert arm_text.read(arm_text.write("n", settings)) == ("n", {**settings, "a": '"x,y"'})


def test_records_of_options_have_arms_without_secrets() -> None:
    options = RUN.read(["--arm", f"a:hf_token={SECRET},max_num_seqs=8", "--arm", "b"])
    assert SECRET not in str(recorded(options))
    assert recorded(options)["arms"] == ("a:hf_token=[redacted],max_num_seqs=8", "b:")


def test_a_plan_says_which_gpus_every_arm_uses(plan: Plan) -> None:
    words = ["--arm", "bf16", "--arm", "tp2:precision=bf16,tensor_parallel_size=2"]
    code, out, err = plan(*words, "--arm", "ep:precision=fp8,expert_parallel=2,env.NCCL_ALGO=Ring")
    assert (code, err) == (0, "")
    lines = {line.split(":")[0].strip(): line for line in out.splitlines()}
    assert "; GPU 0; vllm, bf16; " in lines["bf16"]
    assert "GiB on each of 2 GPUs; GPUs 0,1; vllm, bf16, tensor_parallel_size=2; " in lines["tp2"]
    assert "enable_expert_parallel=True, env.NCCL_ALGO=Ring; " in lines["ep"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--arm", "a", "--arm", "b"], "The arms a and b are the same."),
        (["--arm", "bf16", "--arm", "b:precision=bf16"], "The arms bf16 and b are the same."),
        (["--arm", "a", "--precisions", "bf16"], "--arm and --precisions both say"),
        (["--arm", "fp8", "--emulate"], "--emulate is for --precisions"),
        (["--arm", "a:tensor_parallel_size=4"], "The parallel sizes ask for 4 GPUs, and this machine has 2."),
        (["--arm", "a:precision=nvfp4", "--arm", "bf16"], "a: .*was given for nvfp4 and holds none|a: .*holds bf16"),
        (["--arm", "a", "--arm", "b:max_num_seqs=x,tensor_parallel_size=x"], "tensor_parallel_size=x is not a whole"),
        (["--arm", "a", "--arm", "b:checkpoint=/nowhere"], "There is no folder /nowhere"),
    ],
)
def test_reasons_known_before_a_load_end_the_command(plan: Plan, words: list[str], sentence: str) -> None:
    code, out, err = plan(*words)
    assert (code, out) == (2, "")
    assert re.search(sentence, err)
    assert len(err.splitlines()) == 1


def test_a_reason_that_all_arms_share_is_told_once(plan: Plan) -> None:
    words = ["--model_args", "weights=random,tensor_parallel_size=3"]
    code, out, err = plan(*words, "--arm", "bf16", "--arm", "fp8", "--arm", "x:precision=fp8_block")
    assert (code, out) == (2, "")
    assert err.count("The parallel sizes ask for 3 GPUs") == 1
    assert plan(*words, "--precisions", "bf16,fp8")[2].count("The parallel sizes ask for 3 GPUs") == 1


def test_every_variable_of_a_trtllm_arm_reaches_spawned_workers() -> None:
    rows = [row.name for row in tables.variables() if "trtllm" in row.engines]
    assert {"NCCL_ALGO", "PYTORCH_CUDA_ALLOC_CONF", "TRTLLM_FORCE_COMM_METHOD"} <= {*rows}
    assert [name for name in rows if not load._FORWARDED.match(name)] == []
    assert load._FORWARDED.match("CUDA_VISIBLE_DEVICES") is None


def test_names_of_trtllm_versions_are_known_where_none_is_installed() -> None:
    """Of the nested configurations moe_eval has names of its own, and the constructor's stay out of the list."""
    names = tables.settings("trtllm", "no_such_package")
    assert {*NESTED, *OWN} <= names
    assert {"sampler_type", "prefill_cuda_graph_backend", "use_cute_dsl_bf16_gemm"} <= names
    assert not {"fail_fast_on_attention_window_too_large", "moe_config", "kv_cache_config"} & names


def test_arms_that_do_not_fit_for_one_reason_say_it_once(plan: Plan, tmp_path: Path) -> None:
    config = json.loads((tmp_path / "qwen3" / "config.json").read_text())
    (tmp_path / "qwen3" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 96}))
    words = ["--arm", "a:weights=random", "--arm", "b:weights=random,enforce_eager=true"]
    code, _, err = plan(*words, gpu="1xH100")
    assert code == 2
    assert err.splitlines()[-1].startswith("moe-eval: a and b do not fit here: each needs 112.6 GiB of weights")
    assert err.count("GiB of weights") == 1
