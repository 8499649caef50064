"""The exit code of a process that a library's thread would keep for ever."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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


def test_what_a_library_has_printed_by_c_is_not_lost(tmp_path: Path) -> None:
    program = "import ctypes, sys\nfrom moe_eval import exits\nctypes.CDLL(None).printf(b'by C')\nexits.end_now()"
    with (tmp_path / "printed").open("w") as printed:
        subprocess.run([sys.executable, "-c", program], stdout=printed, timeout=60, check=True)
    assert (tmp_path / "printed").read_text() == "by C"
