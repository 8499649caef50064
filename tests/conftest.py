"""What tests of several rooms share."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

# before anything imports the hub's client, which reads it once: no test may wait for a network
os.environ["HF_HUB_OFFLINE"] = "1"
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


def pytest_collection_finish() -> None:
    """An engine that is closed collects garbage: not among all that the tests of a worker have imported."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def wikitext() -> Path:
    """WikiText-2's raw test file, which the project does not carry."""
    if not WIKITEXT.is_file():
        pytest.skip("shared data absent: WikiText-2's wiki.test.raw is not beside the checkout")
    return WIKITEXT


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated store of MLflow to be copied: making one takes many seconds."""
    import mlflow

    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of bf16 and fp8 with its comparison and report. Nobody may write into it."""
    from tests.doubles.servers import recorded_run

    return recorded_run(tmp_path_factory.mktemp("recorded") / "run")


@pytest.fixture(scope="session")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The server that forks processes, one for all workers."""
    folder = tmp_path_factory.getbasetemp()
    server = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "forks"
    with forks.connect(server):
        yield server


@pytest.fixture(scope="session")
def commands(forked: Path) -> Commands:
    """Starts commands in processes of their own."""
    return Commands(forked)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may depend on a user's MLflow, data or repository."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MOE_EVAL_WIKITEXT"):
        monkeypatch.delenv(name, raising=False)
    for name in [each for each in os.environ if each.startswith("GIT_")]:  # of a hook: they name its repository
        monkeypatch.delenv(name)
