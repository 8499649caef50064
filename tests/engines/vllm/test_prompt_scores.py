"""vLLM's own function of prompt log-probabilities, with another kernel under it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from moe_eval.engines.vllm import prompt_scores

KERNEL = "moe_eval.engines.vllm.softmax_kernel"


class LogprobsTensors(NamedTuple):
    logprob_token_ids: Tensor
    logprobs: Tensor
    selected_token_ranks: Tensor
    cu_num_generated_tokens: list[int] | None = None

    @staticmethod
    def empty_cpu(positions: int, width: int) -> LogprobsTensors:
        shape = (positions, width)
        return LogprobsTensors(torch.zeros(shape).int(), torch.zeros(shape), torch.zeros(positions).int())


class Sampler:
    """As vLLM 0.22 has it."""

    @staticmethod
    def compute_logprobs(logits: Tensor) -> Tensor:
        return logits.log_softmax(dim=-1, dtype=torch.float32)

    @staticmethod
    def gather_logprobs(logprobs: Tensor, count: int, token_ids: Tensor) -> LogprobsTensors:
        top, ids = torch.topk(logprobs, count, dim=-1)
        of_tokens = logprobs.gather(-1, token_ids[:, None])
        ranks = (logprobs >= of_tokens).sum(-1)
        return LogprobsTensors(torch.cat([token_ids[:, None], ids], 1), torch.cat([of_tokens, top], 1), ranks)


class Runner:
    """As vLLM's, with the parts of it that matter here."""

    def __init__(self, device: str, count: int = 0) -> None:
        self.device, self.model_config = SimpleNamespace(type=device), SimpleNamespace(dtype=torch.bfloat16)
        self.sampler, self.breaks, self.count = Sampler(), False, count

    def _get_prompt_logprobs_dict(self, logits: Tensor, tokens: dict[str, Tensor]) -> dict[str, LogprobsTensors]:
        if self.breaks:
            raise RuntimeError("CUDA error")
        answers = {}
        for name, ids in tokens.items():
            tensors = sys.modules["vllm.v1.outputs"].LogprobsTensors.empty_cpu(len(ids), self.count + 1)
            computed = self.sampler.compute_logprobs(logits)
            chosen, logprobs, ranks, _ = self.sampler.gather_logprobs(computed, self.count, ids)
            for part, result in zip(tensors, (chosen, logprobs, ranks), strict=False):
                part.copy_(result, non_blocking=True)
            answers[name] = tensors
        return answers


def read(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The kernel, here by float64."""
    assert logits.dtype == torch.bfloat16, "not written in float32 before"
    maximum = logits.double().amax(1)
    own = logits.gather(1, ids[:, None])
    log_total = logits.double().logsumexp(1) - maximum
    return maximum.float(), log_total.float(), (logits >= own).sum(1).int()


def _zeros(zeros: Callable[..., Tensor], *shape: int, device: object = None, **given: object) -> Tensor:
    return zeros(*shape, **given)


def _fails_with(error: Exception) -> Callable[..., None]:
    def read(*_: object) -> None:
        raise error

    return read


@pytest.fixture(autouse=True)
def _kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, outputs = ModuleType(KERNEL), ModuleType("vllm.v1.outputs")
    vars(kernel)["read"], vars(outputs)["LogprobsTensors"] = read, LogprobsTensors
    for name in ("vllm", "vllm.v1"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for module in (kernel, outputs):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: self.clone())
    monkeypatch.setattr(torch, "zeros", partial(_zeros, torch.zeros))


def question() -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(1)
    return torch.randn(5, 40).bfloat16(), {name: torch.randint(40, (5,)) for name in "ab"}


@pytest.mark.parametrize("count", [0, 2])
def test_answers_are_those_of_the_sampler(count: int) -> None:
    expected = Runner("cuda", count)._get_prompt_logprobs_dict(*question())
    runner = Runner("cuda", count)
    assert prompt_scores.hasten(runner)
    answers: dict[str, Any] = runner._get_prompt_logprobs_dict(*question())
    assert answers.keys() == expected.keys()
    for name, tensors in answers.items():
        torch.testing.assert_close(tensors.logprobs, expected[name].logprobs, atol=1e-6, rtol=0)
        assert torch.equal(tensors.logprob_token_ids[:, 0], expected[name].logprob_token_ids[:, 0])
        assert torch.equal(tensors.selected_token_ranks, expected[name].selected_token_ranks)


@pytest.mark.parametrize("breaks", [False, True])
def test_a_sample_of_the_model_goes_through_the_sampler_as_before(breaks: bool) -> None:
    runner = Runner("cuda")
    sampler, empty, runner.breaks = runner.sampler, LogprobsTensors.empty_cpu, breaks
    prompt_scores.hasten(runner)
    if breaks:
        with pytest.raises(RuntimeError, match="CUDA error"):
            runner._get_prompt_logprobs_dict(*question())
    else:
        runner._get_prompt_logprobs_dict(*question())
    assert runner.sampler is sampler
    assert LogprobsTensors.empty_cpu is empty


@pytest.mark.parametrize("lacks", ["device", "function", "kernel", "compiler", "runner"])
def test_what_lacks_something_stays_as_it_is(lacks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runner: Any = Runner("cpu" if lacks == "device" else "cuda")
    if lacks == "function":
        runner = SimpleNamespace(device=runner.device)
    if lacks == "kernel":  # as where Triton is not installed
        monkeypatch.setitem(sys.modules, KERNEL, None)
    if lacks == "compiler":
        monkeypatch.setattr(sys.modules[KERNEL], "read", _fails_with(RuntimeError("no C compiler")))
    before = dict(vars(runner))
    assert not prompt_scores.hasten(None if lacks == "runner" else runner)
    assert vars(runner) == before


def test_a_full_gpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[KERNEL], "read", _fails_with(torch.OutOfMemoryError("full")))
    with pytest.raises(torch.OutOfMemoryError, match="full"):
        prompt_scores.hasten(Runner("cuda"))
