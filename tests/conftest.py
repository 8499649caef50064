"""What tests of several rooms share."""

from __future__ import annotations

import fcntl
import gc
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

# before anything imports the hub's client and torch, which read them once: no test may wait for a network
os.environ["HF_HUB_OFFLINE"] = "1"
# a model this small gains nothing from more threads, and loses minutes where workers share the cores
os.environ["OMP_NUM_THREADS"] = "1"
# a shell's background job ignores it, and so would all commands that tests stop with it
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import hypothesis
import pytest

from tests.contract.commands import Commands
from tests.doubles import forks

# examples are not timed, nor is their making: a busy machine stalls where it likes
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ROOT / "moe_eval" / "assets" / "tiny-qwen3-moe"
SAMPLE = ROOT / "moe_eval" / "assets" / "moe_sample.raw"
WIKITEXT = ROOT.parent / "shared" / "data" / "wikitext" / "wiki.test.raw"


# they start processes; first, so that short files fill the end of the last of several workers
_LONG = {"contract", "install", "cli", "runner", "harness", "tracking", "test_browser.py"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not _LONG & set(item.path.relative_to(ROOT).parts))


@pytest.fixture(scope="module", autouse=True)
def _frozen() -> None:
    """An engine that is closed collects garbage: not among all that a worker has imported and keeps for its session."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def wikitext() -> Path:
    """WikiText-2's raw test file, which the project does not carry."""
    if not WIKITEXT.is_file():
        pytest.skip("shared data absent: WikiText-2's wiki.test.raw is not beside the checkout")
    return WIKITEXT


Shared = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    """Make a folder once for all workers of the session: its name, and what fills it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)

    def made(name: str, fill: Callable[[Path], object]) -> Path:
        with (folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / name).exists():
                (unfinished := folder / f"{name}.unfinished").mkdir()
                fill(unfinished)
                unfinished.rename(folder / name)
        return folder / name

    return made


@pytest.fixture(scope="session")
def empty_store(shared: Shared) -> Path:
    """A migrated store of MLflow to be copied: making one takes many seconds."""

    def fill(folder: Path) -> None:
        import mlflow

        mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}").search_experiments()

    return shared("store", fill) / "mlflow.db"


@pytest.fixture(scope="session")
def recorded(shared: Shared) -> Path:
    """A finished run of bf16 and fp8 with its comparison and report. Nobody may write into it."""

    def fill(folder: Path) -> None:
        from tests.doubles.servers import recorded_run

        recorded_run(folder / "run")

    return shared("recorded", fill) / "run"


@pytest.fixture(scope="session")
def forked(shared: Shared) -> Iterator[Path]:
    """The server that forks processes, one for all workers."""
    with forks.connect(shared("forks", lambda _: None) / "server") as connection:
        yield Path(connection.getpeername())


@pytest.fixture(scope="session")
def commands(forked: Path) -> Commands:
    """Starts commands in processes of their own."""
    return Commands(forked)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports with charts that were not drawn: drawing them takes most of the time of a command on made-up arms."""
    from matplotlib.figure import Figure

    def save(_: object, file: BinaryIO, **options: object) -> None:
        file.write(b"<svg xmlns='http://www.w3.org/2000/svg'/>" if options["format"] == "svg" else b"\x89PNG")

    monkeypatch.setattr(Figure, "savefig", save)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may depend on a user's MLflow, data or repository."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MOE_EVAL_WIKITEXT"):
        monkeypatch.delenv(name, raising=False)
    for name in [each for each in os.environ if each.startswith("GIT_")]:  # of a hook: they name its repository
        monkeypatch.delenv(name)
