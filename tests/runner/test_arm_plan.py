"""Which arms a comparison has on which machine, from small checkpoints that hold nothing but their settings."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from moe_eval.engines.registry import EngineKind
from moe_eval.errors import UsageError
from moe_eval.machine.hardware import Gpu
from moe_eval.records.run import Skipped
from moe_eval.runner import arm_plan
from moe_eval.runner.arm_plan import Arm
from moe_eval.runner.request import ArmsRequest

A100 = Gpu("NVIDIA A100", "8.0", 80 << 30, None)
H100 = Gpu("NVIDIA H100", "9.0", 80 << 30, None)
B200 = Gpu("NVIDIA B200", "10.0", 180 << 30, None)
RTX = Gpu("NVIDIA RTX PRO 6000", "12.0", 96 << 30, None)

MODELOPT = {name: {"quantization": {"quant_algo": name.upper()}} for name in ("fp8", "nvfp4")}
BLOCKS = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
Folders = Callable[[str], str]


@pytest.fixture
def folder(tmp_path: Path) -> Folders:
    """The folder of a checkpoint in this precision."""

    def make(name: str) -> str:
        path = tmp_path / name
        path.mkdir(exist_ok=True)
        config: dict[str, Any] = {"model_type": "qwen3_moe", "torch_dtype": "bfloat16"}
        (path / "config.json").write_text(json.dumps(config | (BLOCKS if name == "fp8_block" else {})))
        if name in MODELOPT:
            (path / "hf_quant_config.json").write_text(json.dumps(MODELOPT[name]))
        return str(path)

    return make


@pytest.fixture
def paths(folder: Folders) -> dict[str, str | None]:
    return {"model": folder("bf16"), "fp8": folder("fp8"), "nvfp4": folder("nvfp4")}


def planned(
    paths: dict[str, str | None], names: str = "bf16,fp8,nvfp4", gpus: Sequence[Gpu] = (H100,), **changes: Any
) -> list[Arm | Skipped]:
    options: dict[str, Any] = {"engine": "trtllm", "precisions": names.split(","), "paths": paths, **changes}
    return arm_plan.plan(ArmsRequest(**options), gpus)


def ran(planned: list[Arm | Skipped]) -> list[str]:
    return [entry.precision for entry in planned if isinstance(entry, Arm)]


@pytest.mark.parametrize(
    ("gpus", "runs"),
    [
        ((A100,), ["bf16"]),
        ((H100,), ["bf16", "fp8"]),
        ((B200,), ["bf16", "fp8", "nvfp4"]),
        ((RTX,), ["bf16", "fp8", "nvfp4"]),
        ((H100, B200), ["bf16", "fp8"]),
        ((), ["bf16", "fp8", "nvfp4"]),
    ],
    ids=["a100", "h100", "b200", "rtx", "the_first_of_two", "no_gpu_is_left_to_the_engine"],
)
def test_what_a_gpu_cannot_run_is_left_out(paths: dict[str, str | None], gpus: Sequence[Gpu], runs: list[str]) -> None:
    arms = planned(paths, gpus=gpus)
    assert ran(arms) == runs
    names = [entry.arm if isinstance(entry, Skipped) else entry.name for entry in arms]
    assert names == ["bf16", "fp8", "nvfp4"]
    for entry in arms:
        if isinstance(entry, Skipped):
            assert entry.reason.startswith(f"not supported on SM{gpus[0].sm} (it needs SM")
            assert "\n" not in entry.reason


def test_arms_keep_the_order_and_get_their_checkpoint_and_the_options(paths: dict[str, str | None]) -> None:
    options = {"moe_backend": "CUTLASS", "disable_fusion": True}
    arms = planned(paths, "nvfp4,bf16,fp8", (B200,), options=options)
    assert ran(arms) == ["nvfp4", "bf16", "fp8"]
    for arm, key in zip(arms, ("nvfp4", "model", "fp8"), strict=True):
        assert isinstance(arm, Arm)
        assert arm.settings.checkpoint == paths[key]
        assert arm.settings.precision == arm.precision
        assert arm.settings.options == options


@pytest.mark.parametrize("precision", ["fp8", "fp8_block"])
@pytest.mark.parametrize("gpu", [H100, B200])
def test_an_fp8_checkpoint_of_blocks_is_fp8_block(folder: Folders, precision: str, gpu: Gpu) -> None:
    (arm,) = planned({"model": None, "fp8": folder("fp8_block"), "nvfp4": None}, precision, (gpu,))
    assert isinstance(arm, Arm)
    assert (arm.precision, arm.settings.precision) == ("fp8_block", "fp8_block")


@pytest.mark.parametrize("precision", ["fp8", "fp8_channel"])
def test_an_fp8_checkpoint_of_channels_is_fp8_channel(tmp_path: Path, precision: str) -> None:
    weights = {"type": "float", "num_bits": 8, "strategy": "channel"}
    declared = {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}}
    config = {"model_type": "qwen3_moe", "dtype": "bfloat16", "quantization_config": declared}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (arm,) = planned({"fp8": str(tmp_path)}, precision, (H100,))
    assert isinstance(arm, Arm)
    assert (arm.precision, arm.settings.precision) == ("fp8_channel", "fp8_channel")


def test_fp8_of_blocks_is_judged_and_named_as_such_where_it_is_skipped(folder: Folders) -> None:
    (arm,) = planned({"fp8": folder("fp8_block")}, "fp8", (A100,))
    assert isinstance(arm, Skipped)
    assert arm.arm == "fp8_block"
    assert arm.reason.startswith("not supported on SM80 (it needs SM90 or SM100 or SM103")


def test_one_checkpoint_of_blocks_is_not_run_twice_under_one_name(folder: Folders) -> None:
    with pytest.raises(UsageError, match="fp8_block"):
        planned({"fp8": folder("fp8_block")}, "fp8,fp8_block")


@pytest.mark.parametrize(
    ("gpu", "backend", "runs"),
    [
        (B200, "TRTLLM", True),
        (B200, "auto", True),
        (B200, "MARLIN", False),
        (H100, "CUTLASS", False),
    ],
)
def test_the_chosen_implementation_of_experts_decides(
    paths: dict[str, str | None], gpu: Gpu, backend: str, runs: bool
) -> None:
    (arm,) = planned(paths, "nvfp4", (gpu,), options={"moe_backend": backend})
    assert isinstance(arm, Arm) == runs


def test_an_arm_of_weight_only_kernels_is_called_after_what_they_compute(paths: dict[str, str | None]) -> None:
    (arm,) = planned(paths, "nvfp4", (H100,), options={"moe_backend": "MARLIN"})
    assert isinstance(arm, Arm)
    assert arm.precision == "nvfp4-w4a16"
    assert arm.settings.precision == "nvfp4"


def test_a_precision_without_a_checkpoint_is_skipped_with_the_flag_to_give(paths: dict[str, str | None]) -> None:
    arms = planned(dict.fromkeys(paths), "bf16,fp8,fp8_block,nvfp4", (B200,))
    flags = {
        "bf16": "--model_path",
        "fp8": "--fp8_model_path, or --emulate",
        "fp8_block": "--fp8_model_path, or --emulate",
        "nvfp4": "--nvfp4_model_path, or --emulate",
    }
    assert arms == [Skipped(arm, None, f"no checkpoint of it was named (give {flag})") for arm, flag in flags.items()]


def test_the_transformers_engine_runs_no_quantised_checkpoint_natively(paths: dict[str, str | None]) -> None:
    arms = planned(paths, "bf16,fp16,fp32,fp8,nvfp4", (B200,), engine="transformers")
    assert ran(arms) == ["bf16", "fp16", "fp32"]
    assert {entry.reason for entry in arms if isinstance(entry, Skipped)} == {
        "the transformers engine does not run it natively (give --emulate, or another --engine)"
    }


@pytest.mark.parametrize("gpus", [(), (A100,), (H100,)])
def test_emulated_precisions_run_anywhere_from_the_one_checkpoint(folder: Folders, gpus: Sequence[Gpu]) -> None:
    model = folder("bf16")
    arms = planned(
        {"model": model, "fp8": None, "nvfp4": None},
        "bf16,fp8,fp8_block,nvfp4",
        gpus,
        engine="transformers",
        emulate=True,
        scope="all",
        options={"moe_backend": "eager"},
    )
    assert ran(arms) == ["bf16", "fp8", "fp8_block", "nvfp4"]
    for arm in arms:
        assert isinstance(arm, Arm)
        assert arm.settings.checkpoint == model
        emulated = {} if arm.precision == "bf16" else {"emulate": True, "scope": "all"}
        assert arm.settings.options == {"moe_backend": "eager", **emulated}


@pytest.mark.parametrize(
    ("precision", "held", "content"),
    [
        ("fp8", "nvfp4", "holds modelopt NVFP4"),
        ("nvfp4", "fp8", "holds modelopt FP8"),
        ("fp8_block", "fp8", "holds modelopt FP8"),
        ("nvfp4", "bf16", "holds bf16"),
        ("nvfp4", "fp8_block", r"holds fp8 with blocks of \[128, 128\]"),
    ],
)
def test_a_checkpoint_of_another_precision_is_refused(folder: Folders, precision: str, held: str, content: str) -> None:
    for engine in ("trtllm", "transformers"):
        with pytest.raises(UsageError, match=f"was given for {precision} and {content}. Give a checkpoint that holds"):
            planned({precision.removesuffix("_block"): folder(held)}, precision, (B200,), engine=engine)


@pytest.mark.parametrize(("precision", "key"), [("bf16", "model"), ("fp8", "fp8"), ("nvfp4", "nvfp4")])
def test_a_checkpoint_that_is_not_there_is_refused_before_anything_runs(
    tmp_path: Path, precision: str, key: str
) -> None:
    with pytest.raises(UsageError, match="There is no folder"):
        planned({key: str(tmp_path / "nowhere")}, precision, (B200,))
    with pytest.raises(UsageError, match=r"holds no config\.json"):
        planned({key: str(tmp_path)}, precision, (B200,))


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["bf16", "bf16"], "Give each name once"),
        ([], "Give each name once"),
        (["bf16", "int4"], "no precision 'int4'. Give one of bf16"),
    ],
)
def test_names_that_cannot_be_are_refused(paths: dict[str, str | None], names: list[str], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        arm_plan.plan(ArmsRequest("trtllm", names, paths), (B200,))


# fact sheet, additions of 2026-11-26, 2 to 4: what a version reads and runs
@pytest.mark.parametrize(
    ("version", "method", "gpu", "says"),
    [
        (None, "nvfp4", B200, None),
        ("1.4.0rc1", "nvfp4", B200, None),
        ("1.3.0rc20", "nvfp4", B200, "quantised as nvfp4, which TensorRT-LLM 1.3.0rc20 does not read. Install a"),
        (None, "fp8_block", B200, None),
        ("1.4.0rc1", "fp8_block", B200, None),
        ("1.2.0", "fp8_block", B200, "not supported on SM100 with moe_backend=AUTO (DEEPGEMM, TRTLLM, VANILLA can)"),
        ("1.2.0", "fp8_block", H100, None),
        (None, "fp8 dynamic", H100, "quantised as fp8 dynamic, which TensorRT-LLM does not read as quantised at"),
    ],
)
def test_the_installed_version_decides_what_is_planned(
    folder: Folders, monkeypatch: pytest.MonkeyPatch, *, version: str | None, method: str, gpu: Gpu, says: str | None
) -> None:
    monkeypatch.setattr(EngineKind, "version", version)
    path = folder("fp8_block" if method == "fp8_block" else "made_up")
    if method != "fp8_block":
        name, _, scheme = method.partition(" ")
        config = {"model_type": "qwen3_moe", "quantization_config": {"quant_method": name, "activation_scheme": scheme}}
        (Path(path) / "config.json").write_text(json.dumps(config))
    kind = "nvfp4" if method == "nvfp4" else "fp8"
    (entry,) = planned({kind: path}, kind, (gpu,))
    assert isinstance(entry, Arm) == (says is None)
    if isinstance(entry, Skipped):
        assert says is not None
        assert entry.reason.startswith(says)
