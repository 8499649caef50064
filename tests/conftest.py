"""What tests of several rooms share."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ROOT / "moe_eval" / "assets" / "tiny-qwen3-moe"
SAMPLE = ROOT / "moe_eval" / "assets" / "moe_sample.raw"
WIKITEXT = ROOT.parent / "shared" / "data" / "wikitext" / "wiki.test.raw"


@pytest.fixture(scope="session")
def wikitext() -> Path:
    """WikiText-2's raw test file, which the project does not carry."""
    if not WIKITEXT.is_file():
        pytest.skip("shared data absent: WikiText-2's wiki.test.raw is not beside the checkout")
    return WIKITEXT


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may depend on a network, on a user's MLflow or on a user's data."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MOE_EVAL_WIKITEXT"):
        monkeypatch.delenv(name, raising=False)
