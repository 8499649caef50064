"""Which arms a comparison has on which machine, from small checkpoints that hold nothing but their settings."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from moe_eval.errors import UsageError
from moe_eval.machine.hardware import Gpu
from moe_eval.runner import arm_plan
from moe_eval.runner.arm_plan import Arm, Asked, Skip

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
        made = tmp_path / name
        made.mkdir(exist_ok=True)
        config: dict[str, Any] = {"model_type": "qwen3_moe", "torch_dtype": "bfloat16"}
        (made / "config.json").write_text(json.dumps(config | (BLOCKS if name == "fp8_block" else {})))
        if name in MODELOPT:
            (made / "hf_quant_config.json").write_text(json.dumps(MODELOPT[name]))
        return str(made)

    return make


@pytest.fixture
def paths(folder: Folders) -> dict[str, str | None]:
    return {"model": folder("bf16"), "fp8": folder("fp8"), "nvfp4": folder("nvfp4")}


def planned(
    paths: dict[str, str | None], names: str = "bf16,fp8,nvfp4", gpus: Sequence[Gpu] = (H100,), **more: Any
) -> list[Arm | Skip]:
    return arm_plan.plan(Asked(**{"engine": "trtllm", "precisions": names.split(","), "paths": paths} | more), gpus)


def ran(found: list[Arm | Skip]) -> list[str]:
    return [each.precision for each in found if isinstance(each, Arm)]


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
    found = planned(paths, gpus=gpus)
    assert ran(found) == runs
    assert [each.precision for each in found] == ["bf16", "fp8", "nvfp4"]
    for each in found:
        if isinstance(each, Skip):
            assert str(each).startswith(f"Skipping {each.precision}: not supported on SM{gpus[0].sm} (it needs SM")
            assert "\n" not in str(each)


def test_arms_keep_the_order_and_get_their_checkpoint_and_the_options(paths: dict[str, str | None]) -> None:
    options = {"moe_backend": "CUTLASS", "disable_fusion": True}
    found = planned(paths, "nvfp4,bf16,fp8", (B200,), options=options)
    assert ran(found) == ["nvfp4", "bf16", "fp8"]
    for each, key in zip(found, ("nvfp4", "model", "fp8"), strict=True):
        assert isinstance(each, Arm)
        assert each.settings.checkpoint == paths[key]
        assert each.settings.precision == each.precision
        assert each.settings.options == options


@pytest.mark.parametrize("asked", ["fp8", "fp8_block"])
@pytest.mark.parametrize("gpu", [H100, B200])
def test_an_fp8_checkpoint_of_blocks_is_fp8_block(folder: Folders, asked: str, gpu: Gpu) -> None:
    (found,) = planned({"model": None, "fp8": folder("fp8_block"), "nvfp4": None}, asked, (gpu,))
    assert isinstance(found, Arm)
    assert (found.precision, found.settings.precision) == ("fp8_block", "fp8_block")


def test_fp8_of_blocks_is_judged_and_named_as_such_where_it_is_skipped(folder: Folders) -> None:
    (found,) = planned({"fp8": folder("fp8_block")}, "fp8", (A100,))
    assert isinstance(found, Skip)
    assert str(found).startswith("Skipping fp8_block: not supported on SM80 (it needs SM90 or SM100 or SM103")


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
    (found,) = planned(paths, "nvfp4", (gpu,), options={"moe_backend": backend})
    assert isinstance(found, Arm) == runs


def test_an_arm_of_weight_only_kernels_is_called_after_what_they_compute(paths: dict[str, str | None]) -> None:
    (found,) = planned(paths, "nvfp4", (H100,), options={"moe_backend": "MARLIN"})
    assert isinstance(found, Arm)
    assert found.precision == "nvfp4-w4a16"
    assert found.settings.precision == "nvfp4"


def test_a_precision_without_a_checkpoint_is_skipped_with_the_flag_to_give(paths: dict[str, str | None]) -> None:
    said = [str(each) for each in planned(dict.fromkeys(paths), "bf16,fp8,fp8_block,nvfp4", (B200,))]
    assert said == [
        "Skipping bf16: no checkpoint of it was named (give --model_path)",
        "Skipping fp8: no checkpoint of it was named (give --fp8_model_path, or --emulate)",
        "Skipping fp8_block: no checkpoint of it was named (give --fp8_model_path, or --emulate)",
        "Skipping nvfp4: no checkpoint of it was named (give --nvfp4_model_path, or --emulate)",
    ]


def test_the_transformers_engine_runs_no_quantised_checkpoint_natively(paths: dict[str, str | None]) -> None:
    found = planned(paths, "bf16,fp16,fp32,fp8,nvfp4", (B200,), engine="transformers")
    assert ran(found) == ["bf16", "fp16", "fp32"]
    assert {each.reason for each in found if isinstance(each, Skip)} == {
        "the transformers engine does not run it natively (give --emulate, or another --engine)"
    }


@pytest.mark.parametrize("gpus", [(), (A100,), (H100,)])
def test_emulated_precisions_run_anywhere_from_the_one_checkpoint(folder: Folders, gpus: Sequence[Gpu]) -> None:
    model = folder("bf16")
    found = planned(
        {"model": model, "fp8": None, "nvfp4": None},
        "bf16,fp8,fp8_block,nvfp4",
        gpus,
        engine="transformers",
        emulate=True,
        scope="all",
        options={"moe_backend": "eager"},
    )
    assert ran(found) == ["bf16", "fp8", "fp8_block", "nvfp4"]
    for each in found:
        assert isinstance(each, Arm)
        assert each.settings.checkpoint == model
        more = {} if each.precision == "bf16" else {"emulate": True, "scope": "all"}
        assert each.settings.options == {"moe_backend": "eager", **more}


@pytest.mark.parametrize(
    ("asked", "given", "holds"),
    [
        ("fp8", "nvfp4", "holds modelopt NVFP4"),
        ("nvfp4", "fp8", "holds modelopt FP8"),
        ("fp8_block", "fp8", "holds modelopt FP8"),
        ("nvfp4", "bf16", "holds bf16"),
        ("nvfp4", "fp8_block", r"holds fp8 with blocks of \[128, 128\]"),
    ],
)
def test_a_checkpoint_of_another_precision_is_refused(folder: Folders, asked: str, given: str, holds: str) -> None:
    for engine in ("trtllm", "transformers"):
        with pytest.raises(UsageError, match=f"was given for {asked} and {holds}; give a checkpoint that holds"):
            planned({asked.removesuffix("_block"): folder(given)}, asked, (B200,), engine=engine)


@pytest.mark.parametrize(("asked", "key"), [("bf16", "model"), ("fp8", "fp8"), ("nvfp4", "nvfp4")])
def test_a_checkpoint_that_is_not_there_is_refused_before_anything_runs(tmp_path: Path, asked: str, key: str) -> None:
    with pytest.raises(UsageError, match="There is no folder"):
        planned({key: str(tmp_path / "nowhere")}, asked, (B200,))
    with pytest.raises(UsageError, match=r"holds no config\.json"):
        planned({key: str(tmp_path)}, asked, (B200,))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["bf16", "bf16"], "each of them once"),
        ([], "each of them once"),
        (["bf16", "int4"], "no precision 'int4'; choose from bf16"),
    ],
)
def test_names_that_cannot_be_are_refused(paths: dict[str, str | None], names: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        arm_plan.plan(Asked("trtllm", names, paths), (B200,))
