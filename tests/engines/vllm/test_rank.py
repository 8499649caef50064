"""What ranks say of themselves, and all of them as one."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import msgspec
import pytest
import torch
from torch import nn

from moe_eval.engines.vllm import rank
from moe_eval.engines.vllm.rank import Observed

SEEN = Observed("Fp8/TRITON", "FLASH_ATTN", ("Fp8",), {"experts": 10, "other": 2}, (0, 1), (1, 2, 4))


class _Experts(nn.Module):
    def __init__(self, places: list[int] | None) -> None:
        super().__init__()
        self.moe_config, self.global_num_experts = object(), 4
        self.local_num_experts = sum(place >= 0 for place in places) if places else 4
        self.register_buffer("_expert_map", torch.tensor(places) if places else None)


def test_a_worker_answers_in_text() -> None:
    class Worker(rank.Rank):
        model_runner = SimpleNamespace(
            cudagraph_manager=SimpleNamespace(graphs={SimpleNamespace(num_tokens=size): None for size in ()})
        )

        def get_model(self) -> nn.Module:
            return nn.Sequential(_Experts([-1, 0, -1, 1]))

    observed = msgspec.json.decode(Worker().moe_eval_observed(), type=Observed)
    assert observed.experts == (1, 3)
    assert observed.graphs == ()


def test_all_ranks_as_one() -> None:
    other = replace(SEEN, experts=(2, 3), graphs=(1, 2), attention_backend="FLASHINFER")
    observed = rank.together([SEEN, other])
    assert observed.weight_bytes == {"experts": 20, "other": 4}
    assert observed.graphs == (1, 2)
    assert (observed.moe_backend, observed.attention_backend) == ("Fp8/TRITON", "FLASH_ATTN+FLASHINFER")
    assert rank.expert_ranks([SEEN, other]) == (0, 0, 1, 1)
    assert rank.expert_ranks([replace(SEEN, experts=None)] * 2) is None
    assert rank.together([]).weight_bytes is None
    assert rank.together([SEEN, replace(SEEN, graphs=None)]).graphs is None


def test_graphs_are_those_that_were_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("vllm.compilation.cuda_graph")
    for name in ("vllm", "vllm.compilation"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert rank.captured_graphs(None) is None

    class Size:
        def __init__(self, tokens: int) -> None:
            self.num_tokens = tokens

    planned = {Size(1): SimpleNamespace(cudagraph=object()), Size(8): SimpleNamespace(cudagraph=None)}
    wrapper = SimpleNamespace(concrete_cudagraph_entries=planned)
    module.CUDAGraphWrapper = SimpleNamespace(_all_instances=[wrapper])  # type: ignore[attr-defined]
    assert rank.captured_graphs(None) == (1,)
    module.CUDAGraphWrapper._all_instances.clear()
    assert rank.captured_graphs(None) is None
