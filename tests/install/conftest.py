"""Fresh environments with moe_eval installed the way users do it, in seconds.

The dependencies are those of the environment that runs the tests, put on the path as a plain folder: start-up files
of that environment do not run in the new one, so what is active there was installed there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ROOT

PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q")


@dataclass(frozen=True)
class Environment:
    """A virtual environment."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def site(self) -> Path:
        return next(self.folder.glob("lib/python*/site-packages"))

    def run(self, *arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run its Python in a fresh interpreter."""
        clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        return subprocess.run(
            [self.python, *arguments],
            cwd=cwd or self.folder,
            env={**clean, "HF_HUB_OFFLINE": "1", **environment},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def pip(self, *arguments: str) -> None:
        subprocess.run([*PIP, "--python", self.python, *arguments], check=True, timeout=300)


def make(folder: Path, dependencies: bool = True) -> Environment:
    """A new environment without moe_eval."""
    venv.create(folder, symlinks=True)
    environment = Environment(folder)
    if dependencies:
        (environment.site / "zz_dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return environment


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this source tree."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([*PIP, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, ROOT], check=True, timeout=300)
    return next(folder.glob("moe_eval-*.whl"))


def _with(folder: Path, *packages: str) -> Environment:
    environment = make(folder)
    environment.pip("install", "--no-deps", *packages)
    return environment


@pytest.fixture(scope="session")
def from_wheel(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Environment:
    """An environment with moe_eval installed from the wheel."""
    return _with(tmp_path_factory.mktemp("wheel") / "env", str(wheel))


@pytest.fixture(scope="session")
def from_source(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with moe_eval installed for editing."""
    return _with(tmp_path_factory.mktemp("source") / "env", "--no-build-isolation", "-e", str(ROOT))


@pytest.fixture(params=["from_wheel", "from_source"])
def installed(request: pytest.FixtureRequest) -> Environment:
    """Either of them."""
    environment: Environment = request.getfixturevalue(request.param)
    return environment
