"""What `vllm serve` is started with for an arm, and the labels that its ranks tell."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from moe_eval.engines.base import EngineSettings
from moe_eval.engines.served import server as processes
from moe_eval.engines.served.server import ServerProcess
from moe_eval.engines.serving import ServeSettings
from moe_eval.engines.vllm import server
from moe_eval.engines.vllm.rank import Observed
from moe_eval.errors import EngineError
from tests.conftest import SHIPPED
from tests.engines.vllm.conftest import installed

OBSERVED = Observed("UNQUANTIZED/TRITON", "FLASH_ATTN", (), {"experts": 10, "other": 5}, None, (1, 2))
Serve = Callable[..., tuple[ServerProcess, dict[str, Any], list[Any]]]


@pytest.fixture
def serve(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Start a server that is not there. Returns it, the arguments of its engine, and what it is asked."""

    def run(serving: ServeSettings = ServeSettings(64, 30.0), **options: Any) -> Any:  # noqa: B008
        commands: list[Sequence[str]] = []
        questions: list[Any] = []

        def started(_: str, command: Sequence[str], environment: dict[str, str]) -> SimpleNamespace:
            assert environment == {"VLLM_SERVER_DEV_MODE": "1"}
            commands.append(command)
            return SimpleNamespace(poll=lambda: None)

        def answered(method: str, port: int, path: str, seconds: float, body: object = None) -> SimpleNamespace:
            questions.append((path, body))
            if path.endswith("stop_profile"):
                (Path(str(serving.trace_folder)) / "rank0.json").write_text("{}")
            results = [msgspec.json.encode(OBSERVED).decode()]
            return SimpleNamespace(
                raise_for_status=lambda: None,
                json=lambda: {"results": results},
                text='vllm:num_requests_running{engine="0"} 3.0\n',
            )

        monkeypatch.setattr(processes, "start", started)
        monkeypatch.setattr(processes, "await_ready", lambda *_: None)
        monkeypatch.setattr(server, "asked", answered)
        settings = EngineSettings(str(SHIPPED), dtype="float32", options=options)
        with installed():
            served = server.serve(settings, tokenizer, serving)
        return served, json.loads(commands[0][-1]), questions

    return run


def test_a_server_gets_what_its_engine_gets_and_room_for_the_longest_request(serve: Serve) -> None:
    served, arguments, questions = serve(max_num_seqs=7)
    assert (arguments["model"], arguments["dtype"], arguments["max_num_seqs"]) == (str(SHIPPED), "float32", 7)
    assert arguments["max_model_len"] == 66
    assert arguments["enable_prefix_caching"] is False
    assert arguments["worker_extension_cls"].endswith("rank.Rank")
    assert "profiler_config" not in arguments
    served.forget()
    assert questions == [("/collective_rpc", {"method": "moe_eval_observed"})], "there is nothing to forget"
    facts = served.facts
    assert (facts.moe_backend_observed, facts.attention_backend) == ("UNQUANTIZED/TRITON", "FLASH_ATTN")
    assert facts.weight_bytes == {"experts": 10, "other": 5}
    assert served.running() == 3.0
    assert served.metrics_url == f"{served.server.base_url.removesuffix('/v1')}/metrics"


def test_random_weights_and_prefix_caching_reach_the_server(serve: Serve) -> None:
    served, arguments, questions = serve(ServeSettings(64, 30.0, prefix_caching=True), weights="random")
    assert arguments["load_format"] == "moe_eval_random"
    assert arguments["worker_extension_cls"].endswith("RandomRank")
    assert arguments["enable_prefix_caching"] is True
    served.forget()
    assert questions[-1] == ("/reset_prefix_cache", None)
    assert served.facts.weights == "random"


def test_a_server_is_traced_by_its_own_profiler(serve: Serve, tmp_path: Path) -> None:
    served, arguments, questions = serve(ServeSettings(64, 30.0, trace_folder=str(tmp_path)))
    profiler = arguments["profiler_config"]
    assert (profiler["profiler"], profiler["torch_profiler_dir"]) == ("torch", str(tmp_path))
    assert (profiler["ignore_frontend"], profiler["torch_profiler_with_stack"]) == (True, False)
    with served.profiled(tmp_path / "whole.trace"):
        assert questions[-1] == ("/start_profile", None)
    assert questions[-1] == ("/stop_profile", None)
    assert (tmp_path / "whole.trace").read_text() == "{}"
    assert not (tmp_path / "rank0.json").exists(), "it stays once"
    (tmp_path / "rank0.json").write_text("of an earlier load")
    with pytest.raises(EngineError, match="left no trace"), served.profiled(tmp_path / "again"):
        pass
