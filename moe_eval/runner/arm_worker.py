"""What an arm's process does: `python -m moe_eval.runner.arm_worker ASKS ANSWERS`, two file descriptors or paths.

It ends with the process that asks, also where that one is killed: a GPU is never left to an orphan.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import queue
import select
import signal
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from moe_eval import exits
from moe_eval.engines.base import EngineSettings
from moe_eval.errors import EngineError, UsageError, WorkerDied
from moe_eval.machine import nsys
from moe_eval.records.labels import ArmLabels

_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)
_SERVED_TASKS = ("serving", "serving_trace")
_CLOSE_SECONDS = 60.0  # as long as arm.ArmProcess.end waits


class _Arm:
    """The loaded engine and its tokenizer."""

    engine: Any = None
    tokenizer: Any = None

    def load(self, engine: str, settings: Mapping[str, object], tokenizer: str | None) -> ArmLabels:
        from moe_eval.checkpoint import tokenizer as tokenizers
        from moe_eval.engines import registry

        of_arm = msgspec.convert(settings, EngineSettings)
        if tokenizer is None:
            self.engine = registry.load(engine, of_arm, None)
            return ArmLabels(self.engine.facts)
        self.tokenizer = tokenizers.load(tokenizer, of_arm.revision, of_arm.trust_remote_code)
        self.engine = registry.load(engine, of_arm, self.tokenizer)
        facts = self.engine.facts
        tokenizers.check(self.tokenizer, facts.vocabulary, facts.checkpoint)
        bos = self.tokenizer.bos_token_id
        return ArmLabels(facts, int(self.tokenizer.eos_token_id if bos is None else bos), tokenizer)

    def serve(
        self, engine: str, settings: Mapping[str, object], tokenizer: str | None, serving: Mapping[str, object]
    ) -> ArmLabels:
        from moe_eval.checkpoint import tokenizer as tokenizers
        from moe_eval.engines import registry
        from moe_eval.engines.serving import ServeSettings

        of_arm = msgspec.convert(settings, EngineSettings)
        if tokenizer is not None:
            self.tokenizer = tokenizers.load(tokenizer, of_arm.revision, of_arm.trust_remote_code)
        self.engine = registry.serve(engine, of_arm, self.tokenizer, msgspec.convert(serving, ServeSettings))
        return ArmLabels(self.engine.facts, tokenizer=tokenizer)

    def import_ahead(self, engine: str) -> None:
        from moe_eval.engines import registry

        try:
            importlib.import_module("moe_eval.checkpoint.tokenizer")
            registry.import_ahead(engine)
        except Exception:  # a library that is half imported fails in another way: a fresh process says why
            os._exit(1)

    @property
    def ends_with_process(self) -> bool:
        """Whether the engine has nothing but memory of this process, and Nsight Systems waits for no polite end."""
        return self.engine is not None and self.engine.facts.worker == "in_process" and not nsys.inside()

    def do(self, task: str, arguments: dict[str, Any]) -> object:
        if task in ("load", "serve", "import_ahead"):
            return getattr(self, task)(**arguments)
        tasks = importlib.import_module(f"moe_eval.runner.{'served' if task in _SERVED_TASKS else 'arm'}_tasks")
        result: object = getattr(tasks, task)(self.engine, self.tokenizer, **arguments)
        return result


def main(argv: list[str]) -> int:
    """Answer until there is nothing more to read.

    Returns:
        The exit code; an arm that fails at a task ends there.
    """
    atexit.register(gc.freeze)  # the next load waits for the end of this process, which need look for no cycles
    modes = (os.O_RDONLY, os.O_WRONLY)
    asks, answers = (int(end) if end.isdigit() else os.open(end, mode) for end, mode in zip(argv, modes, strict=True))
    for descriptor in (asks, answers):
        os.set_inheritable(descriptor, False)
    if argv[0].isdigit():  # else its parent is a launcher, which may start it in a thread that ends
        _end_with_parent(asks)
    lines: queue.Queue[bytes | None] = queue.Queue()
    threading.Thread(target=_read, args=(asks, lines), daemon=True).start()
    arm = _Arm()
    with exits.terminable():
        try:
            while (line := lines.get()) is not None:
                request = msgspec.json.decode(line)
                try:
                    result = arm.do(request["task"], request["arguments"])
                finally:  # an arm that failed does no more tasks, and closes its engine undisturbed
                    lines.task_done()
                _answer(answers, {"status": "finished", "result": result})
            if arm.ends_with_process:
                exits.end_now()  # the next load waits, and an engine takes seconds to close
        except (UsageError, EngineError, KeyboardInterrupt) as error:
            reason = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error)
            status = "died" if isinstance(error, WorkerDied) else "failed"
            _answer(answers, {"status": status, "error": reason})
            return exits.settle(error)
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:1000]
            _answer(answers, {"status": "failed", "error": reason})
            raise
        finally:
            if arm.engine is not None:
                arm.engine.close()
    return 0


def _end_with_parent(asks: int) -> None:
    """Have the kernel kill this process with its parent, whatever it waits for. Its guard ends what it has started."""
    if sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    poll = select.poll()
    poll.register(asks, 0)
    if poll.poll(0):  # nobody can ask any more: the parent died before
        os._exit(128 + signal.SIGKILL)


def _read(asks: int, lines: queue.Queue[bytes | None]) -> None:
    with os.fdopen(asks, "rb") as file:
        for line in file:
            lines.put(line)
    if not lines.unfinished_tasks:
        lines.put(None)
    else:  # whoever asked is gone while the arm works for it
        os.kill(os.getpid(), signal.SIGTERM)
    # an engine that does not close is ended, and the workers it started with it
    time.sleep(_CLOSE_SECONDS)
    if os.getpgid(0) == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(128 + signal.SIGTERM)


def _answer(answers: int, content: dict[str, object]) -> None:
    data = msgspec.json.encode(content) + b"\n"
    while data:
        data = data[os.write(answers, data) :]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
