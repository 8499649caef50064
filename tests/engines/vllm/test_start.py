"""What a load does before vLLM starts its processes: a fork is possible only while nothing has touched CUDA."""

from __future__ import annotations

import os

import pytest
import torch

from moe_eval.engines.vllm import installed
from moe_eval.machine import cuda_driver, hardware, nsys
from moe_eval.machine.hardware import Gpu
from tests.engines.vllm.conftest import Load

METHOD, CACHE = "VLLM_WORKER_MULTIPROC_METHOD", "TRITON_CACHE_DIR"


def test_cuda_is_not_touched_until_a_spawned_worker_is_loaded(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    def touched(*_: object, **__: object) -> None:
        raise AssertionError("CUDA is initialised in this process")

    monkeypatch.delenv(nsys.SESSION, raising=False)
    with monkeypatch.context() as patch:
        patch.setattr(hardware, "_cuda", lambda: "13.0")
        patch.setattr(hardware, "_by_driver", lambda _: (Gpu("NVIDIA H200", "9.0", 140 << 30, "GPU-0"),))
        for name in ("_lazy_init", "device_count", "is_available", "get_device_properties", "synchronize"):
            patch.setattr(torch.cuda, name, touched)
        facts = load(options={"worker": "spawned"}).facts
    assert (facts.worker, facts.device, facts.device_name) == ("spawned", "cuda", "NVIDIA H200")
    assert METHOD not in os.environ  # vLLM's default is to fork


@pytest.mark.parametrize(
    ("is_traced", "is_used", "chosen", "method"),
    [
        (True, False, None, "spawn"),
        (False, True, None, "spawn"),
        (True, True, "fork", "fork"),
        (False, False, None, None),
    ],
)
def test_processes_are_not_forked_where_nsys_or_cuda_would_break_unless_the_user_says_so(
    monkeypatch: pytest.MonkeyPatch, is_traced: bool, is_used: bool, chosen: str | None, method: str | None
) -> None:
    monkeypatch.setattr(nsys, "inside", lambda: is_traced)
    monkeypatch.setattr(cuda_driver, "is_initialised", lambda: is_used)
    monkeypatch.setattr(os, "environ", {METHOD: chosen} if chosen else {})
    installed.spawn_where_forks_fail()
    assert os.environ.get(METHOD) == method


@pytest.mark.parametrize(
    ("chosen", "folder"),
    [({}, "/cache/triton_cache"), ({CACHE: "/mine"}, "/mine"), ({"TRITON_HOME": "/mine"}, None)],
    ids=["nothing", "cache", "home"],
)
def test_arms_share_what_triton_compiles(
    load: Load, monkeypatch: pytest.MonkeyPatch, chosen: dict[str, str], folder: str | None
) -> None:
    """Inductor sets a folder of the arm's own where none is set."""
    monkeypatch.setenv("VLLM_CACHE_ROOT", "/cache")
    for name in (CACHE, "TRITON_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    load()
    assert os.environ.get(CACHE) == folder
