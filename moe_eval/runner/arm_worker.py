"""What an arm's process does: `python -m moe_eval.runner.arm_worker ASKS ANSWERS`, two file descriptors.

It ends with the process that asks, also where that one is killed: a GPU is never left to an orphan.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
from dataclasses import asdict
from typing import Any

from moe_eval import exits
from moe_eval.engines.base import EngineSettings
from moe_eval.errors import EngineError, UsageError

_CLOSE_SECONDS = 60.0  # as long as arm.ArmProcess.end waits


class _Arm:
    """The loaded engine and its tokenizer."""

    def __init__(self) -> None:
        self.engine: Any = None
        self.tokenizer: Any = None

    def load(self, engine: str, settings: dict[str, Any], tokenizer: str) -> dict[str, Any]:
        from moe_eval.checkpoint import tokenizer as tokens
        from moe_eval.engines import registry

        asked = EngineSettings(**settings)
        self.tokenizer = tokens.load(tokenizer, asked.revision, asked.trust_remote_code)
        self.engine = registry.load(engine, asked, self.tokenizer)
        tokens.check(self.tokenizer, self.engine.facts.vocabulary, self.engine.facts.checkpoint)
        bos = self.tokenizer.bos_token_id
        return {
            "engine": asdict(self.engine.facts),
            "prefix_token_id": int(self.tokenizer.eos_token_id if bos is None else bos),
            "tokenizer": tokenizer,
        }

    def do(self, task: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if task == "load":
            return self.load(**arguments)
        from moe_eval.runner import arm_tasks

        result: dict[str, Any] = getattr(arm_tasks, task)(self.engine, self.tokenizer, **arguments)
        return result

    def close(self) -> None:
        if self.engine is not None:
            self.engine.close()


def main(argv: list[str]) -> int:
    """Answer until there is nothing more to read.

    Returns:
        The exit code; an arm that fails at a task ends there.
    """
    asks, answers = map(int, argv)
    for each in (asks, answers):
        os.set_inheritable(each, False)
    lines: queue.Queue[bytes | None] = queue.Queue()
    threading.Thread(target=_read, args=(asks, lines), daemon=True).start()
    arm = _Arm()
    with exits.terminable():
        try:
            while (line := lines.get()) is not None:
                asked = json.loads(line)
                try:
                    result = arm.do(asked["task"], asked["arguments"])
                finally:  # an arm that failed is asked no more, and closes its engine undisturbed
                    lines.task_done()
                _answer(answers, {"status": "finished", "result": result})
        except (UsageError, EngineError, KeyboardInterrupt) as error:
            reason = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error)
            _answer(answers, {"status": "failed", "error": reason})
            return exits.settle(error)
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:1000]
            _answer(answers, {"status": "failed", "error": reason})
            raise
        finally:
            arm.close()
    return 0


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


def _answer(answers: int, content: dict[str, Any]) -> None:
    data = json.dumps(content).encode() + b"\n"
    while data:
        data = data[os.write(answers, data) :]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
