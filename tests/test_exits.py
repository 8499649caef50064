"""The exit code of a process that a library's thread would keep for ever."""

from __future__ import annotations

import subprocess
import sys

import pytest

# what a library leaves behind, and a grace that suits a test
HEAD = """
import sys, threading
from moe_eval import exits
from moe_eval.errors import EngineError, UsageError
exits._GRACE_SECONDS = 0.1
threading.Thread(target=threading.Event().wait).start()
exits.end_in_seconds(lambda: None)
"""


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("", 0),
        ("sys.exit()", 0),
        ("sys.exit(0)", 0),
        ("sys.exit(3)", 3),
        ("sys.exit(256 + 7)", 7),
        ("sys.exit(-1)", 255),
        ("sys.exit('why')", 1),
        ("raise ValueError", 1),
        ("sys.exit(exits.settle(EngineError('x')))", 1),
        ("sys.exit(exits.settle(UsageError('x')))", 2),
        ("exits.settle(UsageError('x'))", 2),
        ("try:\n    sys.exit(0)\nexcept SystemExit:\n    pass\nraise ValueError", 1),
    ],
)
def test_a_process_that_is_ended_has_the_code_of_its_own_end(end: str, code: int) -> None:
    ended = subprocess.run([sys.executable, "-c", HEAD + end], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == code, ended.stderr
