"""`moe_kernels` where lm_eval runs under Nsight Systems, and what profiler=nsys says elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from moe_eval.machine import nsys
from tests.conftest import SHIPPED
from tests.harness.running import Command, record, run_folders, samples, sentence

OURS = f"pretrained={SHIPPED},engine=transformers,track=off"
METADATA = {"batch_sizes": [1, 2], "input_len": 24, "output_len": 3, "prompts": "moe_sample"}


def asking(profiler: str) -> tuple[str, ...]:
    model_args = f"{OURS},profiler={profiler}" if profiler else OURS
    return (
        *("--model", "trtllm_moe", "--model_args", model_args),
        *("--tasks", "moe_kernels", "--metadata", json.dumps(METADATA)),
    )


@pytest.mark.parametrize("profiler", ["", "nsys"])
def test_under_nsys_every_shape_is_a_capture_whose_report_is_named(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, profiler: str
) -> None:
    captures: list[str] = []

    @contextmanager
    def capture(name: str) -> Iterator[None]:
        captures.append(name)
        yield

    monkeypatch.setenv(nsys.SESSION, "7")
    monkeypatch.setattr(nsys, "capture", capture)
    monkeypatch.setattr("torch.cuda.nvtx.range", capture)
    ended = command(*asking(profiler))
    assert ended.code == 0, ended.err[-3000:]
    names = ["moe_eval bf16 b1_i24_o3", "moe_eval bf16 b2_i24_o3"]
    assert [name for name in captures if name.startswith("moe_eval")] == names
    (run,) = run_folders(tmp_path)
    for number, row in enumerate(samples(run, "moe_kernels"), 1):
        answer = row["filtered_resps"][0]
        assert (answer["phases"], answer["source"]["format"]) == ({}, "nsys capture")
        assert f"NAME.{number}.nsys-rep" in answer["notes"][0]
        assert answer["notes"][0] in ended.err
        assert answer["profiled_ms"] > 0
    assert record(run)["status"] == "finished"
    assert not [key for key in record(run)["metrics"] if key.startswith("kernels/")]


def test_elsewhere_the_command_is_told_before_anything_is_loaded(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moe_eval.engines.registry.load", lambda *_: pytest.fail("loaded"))
    message = sentence(command(*asking("nsys")))
    assert "runs under Nsight Systems. Put before the command: nsys profile " in message
    assert "--capture-range-end=repeat" in message


def test_another_profiler_is_refused(command: Command) -> None:
    assert "no profiler 'perf'. Give profiler=auto, nsys or torch." in sentence(command(*asking("perf")))
