"""Commands in processes of their own, forked from one that has imported what they all need.

A fork starts in a moment where a fresh interpreter takes ten seconds to import torch, Transformers, the harness and
MLflow; tensorrt_llm is never imported before the fork. Run as a script, this file is the process that forks.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

# what a run imports sooner or later
_SHARED = (
    *("torch", "transformers", "transformers.models.qwen3_moe.modeling_qwen3_moe", "datasets", "pandas", "sklearn"),
    *("sqlitedict", "sacrebleu", "lm_eval.evaluator", "lm_eval._cli.harness", "lm_eval.models", "lm_eval.tasks"),
    *("lm_eval.loggers", "mlflow", "mlflow.store.tracking.sqlalchemy_store", "moe_eval.harness.model"),
    *("moe_eval.harness.outcome", "moe_eval.tracking", "moe_eval.machine.hardware", "torch._dynamo"),
)
_FOREIGN = ("TRTLLM", "TLLM", "OMPI_", "PMI_", "LOCAL_RANK", "MLFLOW_", "MOE_EVAL_", "CUDA_VISIBLE")


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: exit code, negative for the signal that killed it.
        at: time.time() when it was found to have ended.
        events: what the double logged.
        left: processes that it left behind.
    """

    code: int
    out: str
    err: str
    at: float
    log: Path
    events: list[dict[str, Any]]
    left: list[psutil.Process]

    def sentence(self, program: str = "moe_eval: ") -> str:
        """The one sentence that a command ends with where it fails."""
        assert "Traceback" not in self.err, self.err[-3000:]
        told = [line for line in self.err.splitlines() if line.startswith(program)]
        assert len(told) == 1, self.err[-3000:]
        return told[0]

    def scored(self) -> int:
        """Requests for scores of a document; those of the self-test are shorter."""
        return sum(event["event"] == "request" and event["prompt_len"] > 100 for event in self.events)


class Running:
    """A command that was started."""

    def __init__(self, commands: Commands, pid: int, folder: Path) -> None:
        self.commands, self.pid, self.folder = commands, pid, folder

    @property
    def events(self) -> list[dict[str, Any]]:
        file = self.folder / "double.log"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []

    def await_requests(self, number: int) -> None:
        """Until the double has had this many requests."""
        limit = time.monotonic() + 180
        while sum(event["event"] == "request" for event in self.events) < number:
            assert time.monotonic() < limit, (self.folder / "stderr").read_text()[-3000:]
            time.sleep(0.02)

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self, seconds: float = 300) -> Ended:
        """Until it ends; where it does not, it is killed and the test fails."""
        code = self.commands.ask(op="wait", pid=self.pid, seconds=seconds)
        at = time.time()
        limit = time.monotonic() + 3
        while (left := self._left()) and time.monotonic() < limit:
            time.sleep(0.05)
        for process in left:
            process.kill()
        out, err = ((self.folder / name).read_text(errors="replace") for name in ("stdout", "stderr"))
        assert code is not None, f"still running after {seconds} s: {err[-3000:]}"
        return Ended(code, out, err, at, self.folder / "double.log", self.events, left)

    def _left(self) -> list[psutil.Process]:
        """Living processes of the command's session."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                if os.getsid(process.pid) == self.pid and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found


class Commands:
    """Starts `lm_eval`, `moe-eval` and scripts with a double of tensorrt_llm, or none, on the path."""

    def __init__(self) -> None:
        clean = {key: value for key, value in os.environ.items() if not key.startswith(_FOREIGN)}
        root = str(Path(__file__).resolve().parents[2])
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env={**clean, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": root},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **order: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(
        self,
        *arguments: str,
        folder: Path,
        double: Path | None,
        program: str = "lm_eval",
        variables: Mapping[str, str] | None = None,
    ) -> Running:
        """Start a command in `folder`, which its output goes to as well."""
        log = folder / "double.log"
        log.unlink(missing_ok=True)
        pid = self.ask(
            op="start",
            program=program,
            arguments=arguments,
            folder=str(folder),
            double=str(double) if double else None,
            variables={"TRTLLM_DOUBLE_LOG": str(log), **(variables or {})},
        )
        return Running(self, pid, folder)

    def run(self, *arguments: str, **how: Any) -> Ended:
        """Start a command and wait for its end."""
        return self.start(*arguments, **how).wait()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(120)


def _serve() -> None:
    """Fork on request, and wait for what was forked."""
    import lm_eval.tasks._index as task_index

    from moe_eval.harness.plugin import tasks_folder

    for name in _SHARED:
        importlib.import_module(name)

    # the harness reads ten thousand task files for every command; here ours suffice
    build, ours = task_index.TaskIndex.build, tasks_folder()
    task_index.TaskIndex.build = staticmethod(
        lambda paths, **how: build([path for path in paths if Path(path) == ours], **how)
    )
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        order = json.loads(line)
        if order["op"] == "start":
            answer: int | None = os.fork()
            if answer == 0:
                answers.close()
                _become(order)
        else:
            answer = _reaped(order["pid"], order["seconds"])
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _reaped(pid: int, seconds: float) -> int | None:
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def _become(order: Mapping[str, Any]) -> None:
    """Turn this fork into the command; does not return."""
    os.setsid()
    os.chdir(order["folder"])
    for number, name, flags in ((0, os.devnull, os.O_RDONLY), (1, "stdout", 0), (2, "stderr", 0)):
        handle = os.open(name, flags if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, number)
        os.close(handle)
    os.environ.update(order["variables"])
    sys.path[:] = [path for path in sys.path if path != str(Path(__file__).parent)]
    if order["double"]:
        sys.path.insert(0, order["double"])
        os.environ["PYTHONPATH"] = os.pathsep.join((order["double"], os.environ["PYTHONPATH"]))
    sys.argv = [order["program"], *order["arguments"]]
    sys.exit(_program(order["program"], order["arguments"]))


def _program(name: str, arguments: Sequence[str]) -> int:
    if name == "moe-eval":
        from moe_eval.cli import main

        return main(list(arguments))
    if name == "python":
        sys.argv = list(arguments)
        runpy.run_path(arguments[0], run_name="__main__")
        return 0
    from moe_eval.harness.__main__ import main as lm_eval

    lm_eval()
    return 0


if __name__ == "__main__":
    _serve()
