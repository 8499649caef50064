"""Nothing waits for ever: responses that are lost, a load that does not end, threads that remain at the end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moe_eval.data.window import Window
from moe_eval.engines.served.output import WorkerOutput
from moe_eval.engines.trtllm import session as sessions
from moe_eval.engines.trtllm.engine import TrtllmEngine
from moe_eval.engines.trtllm.session import Session
from moe_eval.engines.trtllm.workers import Workers
from moe_eval.errors import UsageError, WorkerDied
from tests.conftest import SHIPPED
from tests.contract.commands import Commands
from tests.contract.conftest import DOUBLES
from tests.engines.trtllm.conftest import NEWEST, Load

WINDOWS = [Window((1, 2), (3, token)) for token in range(6)]


def loses(engine: TrtllmEngine, knob: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The windows that were scored before and after the second one's response was lost."""
    started = engine.session.llm._executor.engine.started
    monkeypatch.setenv("TRTLLM_DOUBLE", f"{knob}={started + 2}")
    finished: list[int] = []
    engine.score(WINDOWS, done=lambda index, _: finished.append(index))
    return finished


@NEWEST
@pytest.mark.parametrize(
    ("knob", "kind", "says"),
    [
        ("lose_at", UsageError, "The GPU's memory does not suffice for scoring"),
        ("drop_at", WorkerDied, "has given no response for 0.7 s while scoring"),
        ("unhealthy_at", WorkerDied, "says that it is not healthy any more while scoring"),
    ],
)
def test_a_lost_response_ends_the_run_and_keeps_all_others(
    load: Load, monkeypatch: pytest.MonkeyPatch, *, knob: str, kind: type[Exception], says: str
) -> None:
    engine = load(options={"stall_timeout": "0.7"})
    started = engine.session.llm._executor.engine.started
    monkeypatch.setenv("TRTLLM_DOUBLE", f"{knob}={started + 2}")
    finished: list[int] = []
    began = time.monotonic()
    with pytest.raises(kind, match=says):
        engine.score(WINDOWS, done=lambda index, _: finished.append(index))
    assert time.monotonic() - began < 15
    assert finished == [0, 2, 3, 4, 5]
    engine.close()  # which waits for nothing


def test_without_a_setting_the_limit_follows_from_the_slowest_response() -> None:
    session = Session.__new__(Session)
    session.stall_seconds = session._slowest = None
    assert session._limit({"max_tokens": 1}) == sessions._FIRST_SECONDS
    session._slowest = 2.0
    assert session._limit({"max_tokens": 1}) == sessions._STALL_SECONDS
    session._slowest = 60.0
    assert session._limit({"max_tokens": 1}) == 1200
    assert session._limit({"max_tokens": 4096}) == 2048
    session.stall_seconds = 5.0
    assert session._limit({"max_tokens": 4096}) == 5.0


@NEWEST
def test_a_load_in_which_nothing_goes_on_ends(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTLLM_DOUBLE", "hang_load")
    with pytest.raises(WorkerDied, match=r"does not come up: nothing has gone on for 2 s .* larger stall_timeout"):
        load(options={"stall_timeout": 2})


@NEWEST
@pytest.mark.parametrize("text", ["0", "-1", "soon", "nan", "inf"])
def test_a_stall_timeout_that_is_none(load: Load, text: str) -> None:
    with pytest.raises(UsageError, match="is not a number of seconds above 0"):
        load(options={"stall_timeout": text})


def test_the_last_lines_of_a_worker(capfd: pytest.CaptureFixture[str]) -> None:
    output = WorkerOutput()
    workers = Workers((), output=output)
    assert workers.last_words == "its last output is above"
    with output.captured():
        subprocess.run([sys.executable, "-c", "print('one'); print('two\\n\\n three  four')"], check=True)
        os.write(2, b"five\n")
    assert workers.last_words == "its last lines: two / three four / five"
    with output.captured():
        os.write(1, b"  ValueError: no kernel \nSegmentation fault\n")
    assert workers.last_words == "its last lines: ValueError: no kernel"
    os.write(2, b"not of a worker\n")
    assert "not of a worker" not in workers.last_words
    assert capfd.readouterr().err.splitlines()[:3] == ["one", "two", ""], "and everything is passed on"


# a load that fails, or a request that is abandoned, with a thread of the library that is no daemon
PROGRAM = """
import sys
import transformers
from moe_eval import exits
from moe_eval.engines import registry
from moe_eval.engines.base import EngineSettings
from moe_eval.data.window import Window

exits._GRACE_SECONDS = 0.5
if __name__ == "__main__":
    tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
    options = {"worker": sys.argv[2], "stall_timeout": 3}
    engine = registry.load("trtllm", EngineSettings(sys.argv[1], options=options), tokenizer)
    engine.score([Window((1, 2), (3, 4))])
"""


@pytest.mark.parametrize(
    ("worker", "knobs", "says"),
    [
        ("in_process", "hang_exit,oom_load", "The GPU's memory does not suffice"),
        ("in_process", "hang_import", "does not come up: nothing has gone on for 3 s"),
        ("spawned", "hang_exit,drop_at=13", "has given no response for 3 s while scoring"),
        ("spawned", "hang_exit,load_error", "its worker printed: ValueError: Unsupported quantisation"),
    ],
)
def test_the_process_ends_whatever_threads_remain(
    commands: Commands, tmp_path: Path, *, worker: str, knobs: str, says: str
) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    variables = {"TRTLLM_DOUBLE": knobs}
    ended = commands.run(
        *(str(script), str(SHIPPED), worker),
        program="python",
        folder=tmp_path,
        double=DOUBLES / "v1_2_0",
        variables=variables,
    )
    assert ended.code == 1, ended.err[-2000:]
    assert says in ended.err
    assert not ended.left
