"""The TensorRT-LLM engine with workers in processes of their own."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from moe_eval.data.window import Window
from moe_eval.engines.base import GenerationRequest
from moe_eval.engines.trtllm.engine import TrtllmEngine
from moe_eval.errors import UsageError, WorkerDied
from tests.engines.conftest import check, window
from tests.engines.trtllm.conftest import NEWEST, Distribution, Load, installed, started

Spawned = tuple[TrtllmEngine, list[dict[str, Any]], list[psutil.Process]]
Launched = tuple[TrtllmEngine, list[dict[str, Any]], list[psutil.Process], dict[str, Any]]


@pytest.fixture(scope="module")
def launched(version: str, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    """An engine, what its double logged, its processes, and the modules that its requests are pickled by."""
    log = tmp_path_factory.mktemp("log") / "events.jsonl"
    before = set(psutil.Process().children(recursive=True))
    with installed(version), pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRTLLM_DOUBLE_LOG", str(log))
        patch.setenv("NCCL_TEST_SETTING", "7")
        patch.setenv("HF_TOKEN", "not-for-workers")
        patch.setenv("CUDA_MY_SECRET", "not-for-workers")
        engine = started(tokenizer, options={"worker": "spawned"})
        modules = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "trtllm_double"}
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    born = [each for each in set(psutil.Process().children(recursive=True)) - before if _works(each)]
    yield engine, lines, born, modules
    with pytest.MonkeyPatch.context() as patch:
        for name, module in modules.items():
            patch.setitem(sys.modules, name, module)
        engine.close()
    assert not any(map(_lives, born))


@pytest.fixture
def spawned(launched: Launched, engine: TrtllmEngine, monkeypatch: pytest.MonkeyPatch) -> Spawned:
    """The same, usable in a test; `engine` is loaded first since loading forgets all modules of doubles."""
    for name, module in launched[3].items():
        monkeypatch.setitem(sys.modules, name, module)
    return launched[:3]


def _lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def _works(process: psutil.Process) -> bool:
    return not {"resource_tracker", "guard"} & set(re.findall(r"\w+", " ".join(process.cmdline())))


def test_what_cannot_be_seen_of_a_spawned_worker_is_not_said(spawned: Spawned) -> None:
    engine, _, born = spawned
    assert len(born) == 1
    assert (engine.facts.worker, engine.facts.moe_backend_observed) == ("spawned", None)
    assert engine.facts.attention_backend == "TRTLLM"


def test_scores_and_completions_do_not_depend_on_the_process(
    spawned: Spawned, engine: TrtllmEngine, oracle: Distribution, windows: list[Window]
) -> None:
    own, _, _ = spawned
    some = windows[:7]
    check(oracle, some, own.score(some))
    request = GenerationRequest(6, ignore_eos=True)
    assert own.generate([[5, 6, 7]], request) == engine.generate([[5, 6, 7]], request)


def test_the_workers_environment(spawned: Spawned, version: str) -> None:
    _, lines, _ = spawned
    (worker,) = [each for each in lines if each["event"] == "worker"]
    assert worker["pid"] != os.getpid()
    assert worker["env"].get("NCCL_TEST_SETTING") == (None if version == "1.2.0" else "7")
    assert not {"HF_TOKEN", "CUDA_MY_SECRET", "TLLM_WORKER_USE_SINGLE_PROCESS"} & set(worker["env"])
    (construct,) = [each for each in lines if each["event"] == "construct"]
    assert ("env_overrides" in construct["kwargs"]) == (version != "1.2.0")
    assert "not-for-workers" not in json.dumps(construct)


def test_the_record_holds_no_environment(spawned: Spawned) -> None:
    assert "env_overrides" not in spawned[0].facts.arguments


def test_a_trace_by_the_library_where_it_has_one(spawned: Spawned, version: str, tmp_path: Path) -> None:
    engine, target = spawned[0], tmp_path / "trace.json"
    if version != "1.4.0rc1":
        with pytest.raises(UsageError, match="cannot trace its spawned workers"), engine.trace(target):
            pytest.fail("nothing is to run")
        return
    with engine.trace(target) as handle:
        engine.score([Window((5, 6, 7), (8, 9))])
    assert handle.path == target
    assert any(event.get("cat") == "kernel" for event in json.loads(target.read_text())["traceEvents"])
    assert list(tmp_path.iterdir()) == [target]


def test_captures_are_opened_by_the_library_in_its_workers(spawned: Spawned, version: str) -> None:
    engine, _, _ = spawned
    if version != "1.4.0rc1":
        with pytest.raises(UsageError, match="opens no capture in its spawned workers"), engine.capture("b1"):
            pytest.fail("nothing is to run")
        return
    before = set(Path(tempfile.gettempdir()).glob("trace-rank*"))
    with engine.capture("b1"):
        engine.score([Window((5, 6, 7), (8, 9))])
    assert set(Path(tempfile.gettempdir()).glob("trace-rank*")) == before, "without torch's profiler beside it"


@NEWEST
def test_two_ranks_of_a_launcher(
    load: Load, oracle: Distribution, monkeypatch: pytest.MonkeyPatch, events: Any
) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    before = set(psutil.Process().children(recursive=True))
    engine = load(options={"tensor_parallel_size": "2"})
    born = [each for each in set(psutil.Process().children(recursive=True)) - before if _works(each)]
    assert (len(born), engine.facts.worker, len(events("worker"))) == (2, "spawned", 2)
    some = [window(1, 40, 20), window(2, 1, 1)]
    check(oracle, some, engine.score(some))
    engine.close()
    engine.close()
    assert not any(map(_lives, born))
    assert len(events("shutdown")) == 1


@NEWEST
def test_a_worker_that_dies_is_noticed(load: Load) -> None:
    engine = load(options={"worker": "spawned"})
    for process in engine.session.workers._processes:
        process.kill()
    with pytest.raises(WorkerDied, match=r"A worker process of TensorRT-LLM \(process \d+\) has died"):
        engine.score([Window((5, 6, 7), (8, 9))])
    assert not any(map(_lives, engine.session.workers._processes))
    engine.session.llm._executor = None  # the double's own shutdown, which Python calls when it collects it, would hang
