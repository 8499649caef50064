"""Traces of vLLM's spawned workers."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from moe_eval.engines.vllm import tracing
from moe_eval.errors import EngineError
from moe_eval.evaluators import kernels_record
from moe_eval.traces.readers import files
from tests.doubles.ranks_play import generation


@dataclass
class Profiler:
    """Writes a file for every rank where a profile ends, the later rank's first."""

    folder: Path
    contents: tuple[bytes, ...]

    @contextmanager
    def profiled(self) -> Iterator[None]:
        yield
        for rank, content in reversed(list(enumerate(self.contents))):
            file = self.folder / f"dp0_pp0_tp{rank}_rank{rank}.17.pt.trace.json.gz"
            file.write_bytes(gzip.compress(content))


@pytest.mark.parametrize("later", [0, 5_000_000])
def test_traces_of_ranks_become_one_in_which_collectives_have_partners(tmp_path: Path, later: int) -> None:
    play = generation(decode=4, gap_ns=(500, 4000))
    base = 10**18
    written = [
        play.chrome(tmp_path / f"{rank}.json", rank, base=base - later * rank, late=later * rank).read_bytes()
        for rank in (0, 1)
    ]
    (folder := tmp_path / "profiles").mkdir()
    with tracing.by_library(Profiler(folder, tuple(written)), folder, tmp_path / "trace.json"):
        pass
    one, other = (
        asdict(kernels_record.make("made up", trace, None))
        for trace in (files.read(tmp_path / "trace.json"), play.trace())
    )
    assert one["phases"] == other["phases"]
    assert one["phases"]["decode"]["collectives"]["matched"] > 0


def test_a_rank_whose_trace_is_cut_off_is_an_error(tmp_path: Path) -> None:
    contents = (json.dumps({"traceEvents": []}).encode(), b'{"traceEv')
    with (
        pytest.raises(EngineError, match="left no Chrome trace"),
        tracing.by_library(Profiler(tmp_path, contents), tmp_path, tmp_path / "trace.json"),
    ):
        pass
