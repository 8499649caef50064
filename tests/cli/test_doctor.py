"""`moe-eval doctor`: which precisions run on which machine, as a page and as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moe_eval import cli
from moe_eval.cli import doctor
from moe_eval.engines.trtllm.page import Page
from moe_eval.machine import hardware
from moe_eval.machine.hardware import Gpu, Machine

H100 = Gpu("NVIDIA H100", "9.0", 80 << 30, None)
B200 = Gpu("NVIDIA B200", "10.0", 180 << 30, None)
A100 = Gpu("NVIDIA A100", "8.0", 80 << 30, None)
RTX = Gpu("NVIDIA RTX PRO 6000", "12.0", 96 << 30, None)
INSTALLED = {"tensorrt_llm": "1.3.0rc27", "transformers": "4.57.0", "vllm": None}
Runs = dict[tuple[str, str], bool]


class Doctor:
    """The command on a machine that is made up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: str, gpus: tuple[Gpu, ...] = (), **installed: str | None) -> str:
        machine = Machine("Linux", "3.11", "a CPU", 8, 1 << 34, gpus, "570.1" if gpus else None, None)
        versions = INSTALLED | installed
        self._monkeypatch.setattr(hardware, "machine", lambda: machine)
        self._monkeypatch.setattr(doctor, "_version", lambda package: versions[package])
        assert cli.main(["doctor", *arguments]) == 0
        return self._capsys.readouterr().out

    def content(self, **more: Any) -> dict[str, Any]:
        parsed: dict[str, Any] = json.loads(self("--json", **more))
        return parsed

    def runs(self, engine: str, **more: Any) -> set[str]:
        return {
            row["precision"] for row in self.content(**more)["precisions"] if row["runs"] and row["engine"] == engine
        }


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Doctor:
    return Doctor(monkeypatch, capsys)


@pytest.mark.parametrize(
    ("gpus", "runs"),
    [
        ((), set()),
        ((A100,), {"bf16", "fp16", "nvfp4-w4a16"}),
        ((H100,), {"bf16", "fp16", "fp8", "fp8_block", "nvfp4-w4a16"}),
        ((B200,), {"bf16", "fp16", "fp8", "fp8_block", "nvfp4", "nvfp4-w4a16"}),
        ((RTX,), {"bf16", "fp16", "fp8", "fp8_block", "nvfp4", "nvfp4-w4a16"}),
        ((H100, B200), {"bf16", "fp16", "fp8", "fp8_block", "nvfp4-w4a16"}),
    ],
    ids=["none", "a100", "h100", "b200", "rtx", "the_first_of_two"],
)
def test_tensorrt_llm_runs_what_the_first_gpu_can(examined: Doctor, gpus: tuple[Gpu, ...], runs: set[str]) -> None:
    assert examined.runs("trtllm", gpus=gpus) == runs


def test_transformers_runs_plain_precisions_anywhere_and_emulates_the_others(examined: Doctor) -> None:
    for gpus in ((), (H100,), (B200,)):
        rows = [row for row in examined.content(gpus=gpus)["precisions"] if row["engine"] == "transformers"]
        said = {row["precision"]: row["why_not"] for row in rows}
        assert {name for name, reason in said.items() if reason is None} == {"bf16", "fp16", "fp32"}
        assert {said[name] for name in ("fp8", "fp8_block", "nvfp4")} == {"emulated alone (emulate=true)"}
        assert {said[name] for name in ("nvfp4-w4a16", "fp8-w8a16")} == {"not known to run"}


def test_an_older_version_runs_less(examined: Doctor) -> None:
    assert "nvfp4-w4a16" not in examined.runs("trtllm", gpus=(H100,), tensorrt_llm="1.2.0")
    assert "nvfp4" not in examined.runs("trtllm", gpus=(RTX,), tensorrt_llm="1.2.0")
    assert "nvfp4" in examined.runs("trtllm", gpus=(B200,), tensorrt_llm="1.2.0")
    assert "it needs >=1.3.0rc11" in examined(gpus=(RTX,), tensorrt_llm="1.2.0")


def test_an_engine_without_a_version_is_judged_as_the_newest(examined: Doctor) -> None:
    assert "nvfp4" in examined.runs("trtllm", gpus=(RTX,), tensorrt_llm="of an unknown version")


@pytest.mark.parametrize("gpus", [(), (H100,), (B200,), (H100, H100)], ids=["none", "h100", "b200", "two"])
def test_the_page_and_the_json_say_the_same(examined: Doctor, gpus: tuple[Gpu, ...]) -> None:
    page, content = examined(gpus=gpus).splitlines(), examined.content(gpus=gpus)
    assert [gpu["name"] for gpu in content["machine"]["gpus"]] == [gpu.name for gpu in gpus]
    for index, gpu in enumerate(gpus):
        assert f"- GPU {index}: {gpu.name}, SM{gpu.sm}, {gpu.memory_bytes >> 30}.0 GiB" in page
    assert ("- no GPU that torch can use" in page) == (not gpus)
    assert content["engines"] == {"trtllm": "1.3.0rc27", "vllm": None, "transformers": "4.57.0"}
    shown = page[page.index("## Precisions of the experts") + 2 :]
    assert shown == [
        f"- {row['precision']} on {row['engine']}: {'yes' if row['runs'] else row['why_not']}"
        for row in content["precisions"]
        if content["engines"][row["engine"]]
    ]
    assert all(row["runs"] == (row["why_not"] is None) for row in content["precisions"])
    assert len({(row["engine"], row["precision"]) for row in content["precisions"]}) == len(content["precisions"]) == 39


def test_an_engine_that_is_not_installed_runs_nothing_and_is_told_with_how_to_get_it(examined: Doctor) -> None:
    page = examined(gpus=(B200,), tensorrt_llm=None)
    assert "- trtllm: TensorRT-LLM is not installed (pip install 'moe-eval[trtllm]'" in page
    assert "on trtllm:" not in page
    content = examined.content(gpus=(B200,), tensorrt_llm=None)
    assert {row["why_not"] for row in content["precisions"] if row["engine"] == "trtllm"} == {
        "TensorRT-LLM is not installed"
    }


def test_without_a_gpu_tensorrt_llm_says_so(examined: Doctor) -> None:
    page = examined()
    assert "- nvfp4 on trtllm: no GPU" in page
    assert "- driver none, CUDA of torch none" in page


def test_nvfp4_on_hopper_is_not_called_nvfp4(examined: Doctor) -> None:
    page = examined(gpus=(H100,))
    assert "- nvfp4 on trtllm: not supported on SM90 (" in page
    assert "- nvfp4-w4a16 on trtllm: yes" in page


def test_a_self_test_is_part_of_the_object(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    page = Page(["# Self-test", "FAILED: generates"], failed=True)
    monkeypatch.setattr(doctor, "_selftest", lambda _: page)
    assert cli.main(["doctor", "--json", "--selftest"]) == 1
    out, err = capsys.readouterr()
    content = json.loads(out)
    assert content["selftest"] == {"failed": True, "page": page.lines}
    assert content["error"] in err
    assert "FAILED: generates" in err


def test_quiet_has_a_line_an_engine(examined: Doctor) -> None:
    assert examined("--quiet", gpus=(H100,)).splitlines() == [
        "trtllm 1.3.0rc27 runs bf16, fp16, fp8, fp8_block, nvfp4-w4a16 here.",
        "vllm is not installed.",
        "transformers 4.57.0 runs bf16, fp16, fp32 here.",
    ]


def test_the_json_of_this_very_machine_parses(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert set(content) == {"machine", "engines", "precisions"}
    assert content["engines"]["transformers"]


def test_what_a_checkpoint_carries_is_told_without_an_engine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quantisation = {"quant_method": "modelopt", "quant_algo": "NVFP4", "kv_cache_scheme": {"num_bits": 8}}
    config = {"dtype": "bfloat16", "quantization_config": {**quantisation, "ignore": ["lm_head"]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert cli.main(["doctor", "--checkpoint", str(tmp_path)]) == 0
    page = capsys.readouterr().out
    for line in ("routed experts: nvfp4", "key-value cache: fp8", "type of the rest: bfloat16", "quantised: lm_head"):
        assert line in page
    assert cli.main(["doctor", "--checkpoint", str(tmp_path), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert (content["carried"]["precision"], content["carried"]["kv_cache"]) == ("nvfp4", "fp8")
    assert content["geometry"] is None
    assert cli.main(["doctor", "--checkpoint", str(tmp_path), "--selftest"]) == 2
    assert "--checkpoint only reads files" in capsys.readouterr().err
    assert cli.main(["doctor", "--checkpoint", str(tmp_path / "absent")]) == 2
