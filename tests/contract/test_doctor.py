"""`moe-eval doctor`: what it says of a machine, and of the TensorRT-LLM that it exercises."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract.commands import Commands, Ended
from tests.contract.conftest import DOUBLES


def examine(commands: Commands, folder: Path, *arguments: str, double: Path | None = None, fault: str = "") -> Ended:
    variables = {"TRTLLM_DOUBLE": fault}
    return commands.run("doctor", *arguments, program="moe-eval", folder=folder, double=double, variables=variables)


def test_without_a_gpu_and_without_tensorrt_llm_it_says_so(commands: Commands, tmp_path: Path) -> None:
    ended = examine(commands, tmp_path)
    assert ended.code == 0, ended.err
    assert "trtllm: TensorRT-LLM is not installed (pip install" in ended.out
    assert "- GPU 0: " in ended.out or "- no GPU that torch can use" in ended.out
    assert "transformers: Transformers " in ended.out


def test_it_names_the_installed_version_without_importing_it(commands: Commands, tmp_path: Path) -> None:
    ended = examine(commands, tmp_path, double=DOUBLES / "v1_3_0rc8")
    assert ended.code == 0, ended.err
    assert "trtllm: TensorRT-LLM 1.3.0rc8" in ended.out
    assert ended.events == []


def test_the_self_test_fills_one_page(commands: Commands, version: str, double_path: Path, tmp_path: Path) -> None:
    ended = examine(commands, tmp_path, "--selftest", "--model_args", "dtype=float32", double=double_path)
    assert ended.code == 0, ended.err[-3000:]
    assert not ended.left
    lines = ended.out.splitlines()
    assert f"- version: {version}" in lines
    assert "- worker: in_process" in lines
    (experts,) = [line for line in lines if line.startswith("- moe_backend_observed: ")]
    assert "FusedMoe" in experts or "FusedMoE" in experts
    assert "FAILED" not in ended.out
    newest = version == "1.4.0rc1"
    (generation,) = [line for line in lines if line.startswith("- context logits against greedy generation: ")]
    assert " agree (" in generation
    assert any("prompt_logprobs=0 against context logits: agree (" in line for line in lines) == newest
    assert any("prompt_logprobs=1, not used here: " in line for line in lines) != newest
    perplexity = [line for line in lines if "token perplexity" in line]
    assert len(perplexity) == 1
    assert float(perplexity[0].split("token perplexity ")[1].split()[0]) == pytest.approx(153.4, rel=0.02)
    assert sum(line.startswith("- 16 of 16 tokens") for line in lines) == 2


def test_logits_one_row_off_fail_it(commands: Commands, tmp_path: Path) -> None:
    ended = examine(commands, tmp_path, "--selftest", double=DOUBLES / "v1_4_0rc1", fault="shift_logits=1")
    assert ended.code == 1
    assert "rows one off" in ended.sentence("moe-eval: ")


def test_without_tensorrt_llm_the_self_test_says_how_to_install_it(commands: Commands, tmp_path: Path) -> None:
    ended = examine(commands, tmp_path, "--selftest")
    assert ended.code == 2
    assert "pip install 'moe-eval[trtllm]'" in ended.sentence("moe-eval: ")
