"""An arm's server: what a load of the serving evaluator starts, asks and stops."""

from __future__ import annotations

import socket
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import requests

from moe_eval.engines.endpoint.server import Server
from moe_eval.errors import UsageError
from moe_eval.frozen import frozen
from moe_eval.records.labels import EngineFacts
from moe_eval.records.samples import EngineSteps

HOST = "127.0.0.1"


@frozen
class ServeSettings:
    """With what servers are started, the same for all arms.

    Attributes:
        window: tokens of the longest request, read and made.
        seconds: in which a server has to get ready.
        port: None for any that is free.
        prefix_caching: whether prompts that begin alike are computed once.
        trace_folder: where its profiler writes, so that Served.profiled works. None for a load that is timed.
    """

    window: int
    seconds: float
    port: int | None = None
    prefix_caching: bool = False
    trace_folder: str | None = None


class Served(Protocol):
    """A server that answers.

    Attributes:
        server: where and under which name its model is asked.
        metrics_url: of its metrics as Prometheus' text. None where it has none.
    """

    server: Server
    metrics_url: str | None

    @property
    def facts(self) -> EngineFacts: ...

    def check(self) -> None:
        """Look whether it still runs.

        Raises:
            EngineError: how it ended.
        """

    def forget(self) -> None:
        """Forget the prompts of earlier points, where it keeps them and can."""

    def steps(self) -> EngineSteps | None:
        """What it says of its steps since the last call, where it tells of steps. None where it does not."""

    def running(self) -> float | None:
        """Requests in its steps now. None where it does not tell."""

    def profiled(self, target: Path) -> AbstractContextManager[None]:
        """Record the kernels that run inside by torch's profiler into the file `target`.

        Raises:
            UsageError: it was not started with ServeSettings.trace_folder, or cannot be traced.
        """

    def close(self) -> None:
        """Stop it. No process of it and no port is left."""


def free_port(port: int | None) -> int:
    """A port that nobody listens to: this one, or any.

    Raises:
        UsageError: it is in use.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what a server that ended left is no use
        try:
            probe.bind((HOST, port or 0))
        except OSError:
            raise UsageError(f"Port {port} is in use. Give another --port, or leave it out for a free one.") from None
        return int(probe.getsockname()[1])


def asked(method: str, port: int, path: str, seconds: float, body: object = None) -> requests.Response:
    """The answer of a server of this machine, whatever proxy the environment names.

    Raises:
        requests.RequestException: there is none within so many seconds.
    """
    with requests.Session() as session:
        session.trust_env = False
        return session.request(method, f"http://{HOST}:{port}{path}", json=body, timeout=seconds)


def local(port: int, model: str) -> Server:
    """A server of this machine."""
    return Server(f"http://{HOST}:{port}/v1", model)
