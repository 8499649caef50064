"""The recipe for TensorRT-LLM: its image keeps its own packages, and its scripts are whole."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "examples/Dockerfile.trtllm").read_text()
# what the images pin, with sources, and what a resolver makes of this package beside it: images/README.md
IMAGES = ROOT / "tests/house/images"
VERSIONS = sorted(file.stem for file in IMAGES.glob("*.in"))
INSIDE = {"python_version": "3.12", "sys_platform": "linux", "platform_machine": "x86_64"}


def requirements(file: Path) -> dict[str, Requirement]:
    lines = (line for line in file.read_text().splitlines() if line and not line.startswith("#"))
    return {canonicalize_name(stated.name): stated for stated in map(Requirement, lines)}


def resolved(version: str) -> dict[str, str]:
    pins = requirements(IMAGES / f"{version}.txt")
    return {name: next(iter(pin.specifier)).version for name, pin in pins.items()}


@pytest.mark.parametrize("version", VERSIONS)
def test_this_package_resolves_beside_what_an_image_pins(version: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = resolved(version)
    stated = list(map(Requirement, project["dependencies"]))
    for requirement in stated:
        if requirement.marker is None or requirement.marker.evaluate(INSIDE):
            pin = pins[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(pin, prereleases=True), f"{requirement} beside {version}"
    for name, held in requirements(IMAGES / f"{version}.in").items():
        if name in pins:
            assert held.specifier.contains(pins[name], prereleases=True), f"{name} of {version} would be replaced"


def test_the_dockerfile_is_of_an_image_that_was_resolved() -> None:
    (version,) = re.findall(r"^ARG TRTLLM_VERSION=(.+)$", DOCKERFILE, re.MULTILINE)
    assert version in VERSIONS
    assert "--constraint" in DOCKERFILE
    assert "[trtllm]" not in DOCKERFILE, "the image has it"


def test_the_dockerfile_constrains_what_the_images_pin() -> None:
    (pattern,) = re.findall(r"grep -iE '(.*nvidia.*)'", DOCKERFILE)
    pinned = {name for version in VERSIONS for name in requirements(IMAGES / f"{version}.in")}
    for name in (*pinned, "tensorrt_llm", "tensorrt-llm", "nvidia-cublas-cu13", "torchvision"):
        assert re.match(pattern, f"{name}==1.0", re.IGNORECASE), name
    assert not re.match(pattern, "lm-eval==0.4.10", re.IGNORECASE)


def test_the_slurm_script_is_bash() -> None:
    subprocess.run(["bash", "-n", str(ROOT / "examples/slurm-trtllm.sh")], check=True)
