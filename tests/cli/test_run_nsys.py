"""`moe-eval run --profiler nsys` on the shipped model, with a stand-in for nsys: what it leaves and never logs."""

from __future__ import annotations

import contextlib
import gzip
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from moe_eval.cli import main
from moe_eval.machine import hardware
from moe_eval.machine.hardware import Gpu
from moe_eval.records import by_arm
from moe_eval.traces import breakdown
from moe_eval.traces.readers import files
from tests.cli.commands import Ended, without_gpu
from tests.conftest import SHIPPED
from tests.doubles import nsys, nsys_database

IN_ENVIRONMENT, PRINTED = "hunter2-in-the-environment", "hunter2-printed-by-the-program"
IN_ARGUMENT = "hunter2-in-an-argument"
SECRETS = (IN_ENVIRONMENT, PRINTED, IN_ARGUMENT)
OPTIONS = [
    *(
        "run",
        "--model_path",
        str(SHIPPED),
        "--engine",
        "transformers",
        "--precisions",
        "bf16",
        "--dataset",
        "moe_sample",
    ),
    *("--evaluators", "kernels", "--input_len", "16", "--output_len", "12", "--batch_size", "1,2"),
]
SHAPES = ("b1_i16_o9", "b2_i16_o9")


@contextlib.contextmanager
def machine(scratch: Path) -> Iterator[pytest.MonkeyPatch]:
    """A machine that seems to have a GPU and nsys, with secrets wherever a report may find them."""
    with without_gpu(scratch), pytest.MonkeyPatch.context() as patch:
        patch.setattr(hardware, "gpus", lambda: (Gpu("made up", "9.0", 80 << 30, None),))
        patch.setenv("PATH", str(nsys.install(scratch / "bin")), prepend=os.pathsep)
        patch.setenv("HF_TOKEN", IN_ENVIRONMENT)
        patch.setenv(nsys.PRINTED, PRINTED)
        patch.setenv(nsys.ARGUMENT, IN_ARGUMENT)
        yield patch


def run(scratch: Path, *words: str) -> Ended:
    """The command with further words."""
    out, err, folder = scratch / "out", scratch / "err", scratch / "records"
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(stack.enter_context(out.open("w"))))
        stack.enter_context(contextlib.redirect_stderr(stack.enter_context(err.open("w"))))
        code = main([*OPTIONS, "--output_dir", str(folder), *words])
    return Ended(code, folder, out.read_text(), err.read_text())


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Ended, Path]]:
    """A run that finds nsys by itself."""
    scratch = tmp_path_factory.mktemp("run")
    with machine(scratch):
        yield run(scratch), scratch


def test_every_shape_is_a_capture_that_is_broken_down(ran: tuple[Ended, Path]) -> None:
    ended, _ = ran
    assert ended.code == 0, ended.err[-3000:]
    assert "traced by Nsight Systems, in a load of its own" in ended.out
    (arm,) = by_arm.read(ended.folder)
    assert set(arm.kernels) == set(SHAPES)
    for shape, record in arm.kernels.items():
        assert record.source is not None
        assert (record.source.format, record.trace) == ("nsys sqlite", f"trace_{shape}.sqlite.gz")
        assert record.kernels == 5 + (1 + nsys.STEPS) * (nsys.LAYERS * len(nsys_database.LAYER) + 1)
        assert record.phases["decode"].steps > 0
        assert len(record.unprofiled_samples_ms) == 5
        assert any("of the same load under Nsight Systems" in note for note in record.notes)
        copy = files.read(ended.folder / "arms" / "bf16" / f"trace_{shape}.sqlite.gz")
        assert breakdown.make(copy).phases["decode"].busy_ms == record.phases["decode"].busy_ms


def test_raw_reports_stay_on_disk_and_their_paths_are_printed(ran: tuple[Ended, Path]) -> None:
    ended, _ = ran
    folder = ended.folder / "nsys"
    assert folder.stat().st_mode & 0o777 == 0o700, "they hold secrets"
    assert sorted(file.name for file in folder.iterdir()) == [f"bf16_{shape}.nsys-rep" for shape in SHAPES]
    for file in folder.iterdir():
        assert str(file) in ended.err
        assert all(secret in file.read_text() for secret in SECRETS)


def test_no_secret_is_in_a_record_or_in_mlflow(ran: tuple[Ended, Path]) -> None:
    ended, scratch = ran
    client = MlflowClient(f"sqlite:///{scratch / 'own.db'}")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    copies = scratch / "copies"
    for logged in runs:
        (copies / logged.info.run_id).mkdir(parents=True)
        client.download_artifacts(logged.info.run_id, "", str(copies / logged.info.run_id))
    stored = [file for file in copies.rglob("*") if file.is_file()]
    assert {f"trace_{shape}.sqlite.gz" for shape in SHAPES} <= {file.name for file in stored}
    assert not [file for file in stored if file.name.endswith((".nsys-rep", ".qdstrm", ".sqlite"))]
    records = [file for file in ended.folder.rglob("*") if file.is_file() and file.parent.name != "nsys"]
    for file in [*stored, *(file for file in records if file.name != "log.txt"), scratch / "own.db"]:
        content = file.read_bytes()
        content += gzip.decompress(content) if file.suffix == ".gz" else b""
        assert not [secret for secret in SECRETS if secret.encode() in content], file


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--profiler", "nsys"], "nsys is not on PATH. Install it, or give --profiler torch."),
        (["--profiler", "torch", "--keep_report"], "are for Nsight Systems"),
        (["--nsys_args", "--output=x"], "Leave out --output"),
        (["--nsys_args", "-e TOKEN=x"], "sets environment variables"),
        (["--nsys_args", "cuda"], "begins with no option"),
        (["--nsys_args", "--trace='cuda"], "Close every quote"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path: Path, words: list[str], sentence: str) -> None:
    with machine(tmp_path) as patch:
        patch.setenv("PATH", "/nowhere")
        ended = run(tmp_path, *words)
    assert (ended.code, ended.folder.exists()) == (2, False)
    assert sentence in ended.err


@pytest.mark.parametrize(
    ("profiler", "has_nsys", "has_gpu", "by"),
    [
        ("auto", True, True, "Nsight Systems"),
        ("auto", False, True, "torch's profiler"),
        ("auto", True, False, "torch's profiler"),
        ("torch", True, True, "torch's profiler"),
        ("nsys", True, False, None),
    ],
)
def test_the_plan_says_which_profiler(
    tmp_path: Path, profiler: str, has_nsys: bool, has_gpu: bool, by: str | None
) -> None:
    with machine(tmp_path) as patch:
        if not has_nsys:
            patch.setenv("PATH", "/nowhere")
        if not has_gpu:
            patch.setattr(hardware, "gpus", lambda: ())
        ended = run(tmp_path, "--profiler", profiler, "--dry_run")
    if by is None:
        assert (ended.code, "there is none here" in ended.err) == (2, True)
    else:
        assert f"  kernels: traced by {by}" in ended.out
