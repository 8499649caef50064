"""Whose revision a record names: that of moe_eval's own source, and none where it is in no repository."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from moe_eval.machine import hardware


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", *who, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Somebody's repository with one commit."""
    folder = tmp_path / "somebodys"
    folder.mkdir()
    git(folder, "init", "--quiet")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", "x")
    return folder


@pytest.fixture
def installed(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package's file below that repository, in which nobody has added it."""
    file = repository / "venv" / "moe_eval" / "hardware.py"
    file.parent.mkdir(parents=True)
    shutil.copy(hardware.__file__, file)
    monkeypatch.setattr(hardware, "__file__", str(file))
    return file


def test_the_working_directorys_repository_is_not_the_packages(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = hardware.git_state()
    monkeypatch.chdir(repository)
    assert hardware.git_state() == here
    assert here != git(repository, "rev-parse", "HEAD")


def test_a_package_inside_a_repository_that_does_not_track_it_has_no_revision(installed: Path) -> None:
    assert hardware.git_state() is None


def test_a_checkout_has_its_commit_and_says_where_files_differ(repository: Path, installed: Path) -> None:
    git(repository, "add", "--force", str(installed))
    git(repository, "commit", "--quiet", "--message", "y")
    commit = git(repository, "rev-parse", "HEAD")
    assert hardware.git_state() == commit
    installed.write_text("changed")
    assert hardware.git_state() == f"{commit}-dirty"


def test_a_package_outside_of_any_repository_has_no_revision(
    tmp_path: Path, installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    shutil.rmtree(tmp_path / "somebodys" / ".git")
    assert hardware.git_state() is None


@pytest.mark.parametrize(
    ("device", "first"), [(None, 0), ("cuda", 0), ("cuda:0", 0), ("cuda:1", 1), ("cuda:2", 2), ("cpu", 2)]
)
def test_a_device_names_the_gpu_from_which_an_arm_takes_its_own(
    monkeypatch: pytest.MonkeyPatch, device: str | None, first: int
) -> None:
    pair = tuple(hardware.Gpu(name, "9.0", 1 << 30, name) for name in ("one", "two"))
    monkeypatch.setattr(hardware, "gpus", lambda: pair)
    assert hardware.gpus_from(device) == pair[first:]
