"""A server that hangs, trickles, fails for ever or goes away costs the limit in all, and nothing that was measured."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from moe_eval import tracking
from moe_eval.cli import main
from moe_eval.errors import TrackingError, UsageError
from moe_eval.tracking import patience, plan_run, store
from tests.doubles.harness_runs import runs, written

LIMIT = 1.0
Behaviour = Callable[[socket.socket, threading.Event], object]


def hang(connection: socket.socket, over: threading.Event) -> None:
    over.wait()


def trickle(connection: socket.socket, over: threading.Event) -> None:
    connection.recv(1 << 16)
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n" + b" " * 1000
    for byte in answer:
        connection.sendall(bytes([byte]))
        if over.wait(0.05):
            return


def fail(connection: socket.socket, over: threading.Event) -> None:
    while connection.recv(1 << 16):
        connection.sendall(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 4\r\n\r\noops")


def close_in_the_middle(connection: socket.socket, over: threading.Event) -> None:
    connection.recv(1 << 16)
    connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"')


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Behaviour], str]]:
    """A server that treats every connection so; MLflow's variables name it."""
    over, listeners = threading.Event(), []

    def treat(connection: socket.socket, behaviour: Behaviour) -> None:
        with connection:
            try:
                behaviour(connection, over)
            except OSError:  # the client has gone
                return

    def accept(listener: socket.socket, behaviour: Behaviour) -> None:
        while not over.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=treat, args=(connection, behaviour), daemon=True).start()

    def start(behaviour: Behaviour, scheme: str = "http") -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)
        threading.Thread(target=accept, args=(listener, behaviour), daemon=True).start()
        address = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        monkeypatch.setenv(patience.VARIABLE, str(LIMIT))
        patience.begin()
        return address

    yield start
    over.set()
    for listener in listeners:
        listener.close()


@pytest.mark.parametrize("behaviour", [hang, trickle, fail, close_in_the_middle])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_server_costs_the_limit_in_all_commands_of_a_run(
    serve: Callable[..., str], recorded: Path, behaviour: Behaviour, scheme: str
) -> None:
    address = serve(behaviour, scheme)
    files = sorted((file.name, file.read_bytes()) for file in recorded.glob("*.json"))
    harness_run, began = written(), time.monotonic()
    sentences = []
    for log in (plan_run.open_run, plan_run.log, plan_run.log):
        with pytest.raises(TrackingError) as caught:
            log(recorded)
        sentences.append(str(caught.value))
    with pytest.raises(TrackingError) as caught:
        tracking.log_run(harness_run)
    assert time.monotonic() - began < LIMIT + 15  # on a busy machine; without a limit it is minutes
    for sentence in sentences:
        assert f"MLflow at {address} did not " in sentence
    assert sentences[0].endswith("It is tried again when the run ends.")
    for sentence in sentences[1:]:
        assert sentence.endswith(f"Nothing is lost: log it later with `moe-eval log {recorded}`.")
    if behaviour is hang:
        assert f"did not answer within {LIMIT * store.OPENING:g} s (give it longer in " in sentences[0]
    if behaviour in (hang, trickle) or scheme == "https":
        assert f"did not answer within 1 s in all (give it longer in {patience.VARIABLE})" in sentences[-1] or (
            "SSL" in sentences[-1]
        )
    assert sorted((file.name, file.read_bytes()) for file in recorded.glob("*.json")) == files


@pytest.mark.parametrize("behaviour", [hang, trickle])
def test_reading_costs_the_limit_too(
    serve: Callable[..., str], behaviour: Behaviour, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serve(behaviour)
    began = time.monotonic()
    assert main(["compare", "0" * 32, "1" * 32, "--output_dir", str(tmp_path / "out")]) == 2
    assert time.monotonic() - began < LIMIT + 15  # on a busy machine; without a limit it is minutes
    (line,) = capsys.readouterr().err.splitlines()
    assert "did not answer within 1 s in all" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("resolver", ["unknown", "silent"])
def test_a_host_that_no_resolver_knows_costs_the_limit_too(
    recorded: Path, monkeypatch: pytest.MonkeyPatch, resolver: str, tmp_path: Path
) -> None:
    over = threading.Event()

    def resolve(host: str, *_: object, **__: object) -> None:
        if resolver == "silent":
            over.wait()
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", resolve)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker.invalid:5000")
    monkeypatch.setenv(patience.VARIABLE, str(LIMIT))
    patience.begin()
    began = time.monotonic()
    for log, ending in ((plan_run.open_run, "It is tried again"), (plan_run.log, "Nothing is lost")):
        with pytest.raises(TrackingError, match=f"MLflow at http://tracker.invalid:5000 did not .* {ending}"):
            log(recorded)
    assert main(["compare", "0" * 32, "1" * 32, "--output_dir", str(tmp_path / "out")]) == 2
    assert time.monotonic() - began < 2 * LIMIT + 15  # on a busy machine
    over.set()


def test_a_store_that_answers_again_gets_everything(
    serve: Callable[..., str], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = written()
    serve(hang)
    assert main(["log", str(folder), str(folder)]) == 2
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.delenv(patience.VARIABLE)
    assert main(["log", str(folder)]) == 0
    assert len(runs()) == 1


def test_what_answers_is_never_cut_off_for_what_was_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(patience.VARIABLE, "0.5")
    patience.begin()
    for _ in range(4):
        assert patience.within(lambda: time.sleep(0.2) or 7) == 7  # type: ignore[func-returns-value]
    with pytest.raises(patience.NoAnswer):
        patience.within(lambda: time.sleep(1))
    with pytest.raises(patience.NoAnswer, match=r"within 0\.5 s in all"):
        patience.within(lambda: 7)
    patience.begin()
    assert patience.within(lambda: 7) == 7


@pytest.mark.parametrize("value", ["soon", "0", "-1", "nan", "inf"])
def test_a_limit_that_is_no_time_is_refused_before_anything_starts(
    recorded: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    monkeypatch.setenv(patience.VARIABLE, value)
    assert main(["log", str(recorded)]) == 2
    assert f"{patience.VARIABLE} is {value!r}. Give seconds" in capsys.readouterr().err
    with pytest.raises(UsageError):
        patience.begin()
