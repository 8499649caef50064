"""The recipe for TensorRT-LLM: its image keeps its own packages, and its scripts are whole."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
# of the release notes, as far as this package requires them too
IMAGES = {
    "1.2.0": {"torch": "2.9.1", "transformers": "4.57.3"},
}


@pytest.mark.parametrize("version", IMAGES)
def test_what_the_image_has_meets_what_this_package_requires(version: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = {requirement.name: requirement for requirement in map(Requirement, project["dependencies"])}
    for name, held in IMAGES[version].items():
        assert required[name].specifier.contains(held), f"the image's {name} {held} would be replaced"


def test_the_dockerfile_constrains_the_image_s_own_packages() -> None:
    text = (ROOT / "examples/Dockerfile.trtllm").read_text()
    (pattern,) = re.findall(r"grep -iE '(.*nvidia.*)'", text)
    for name in ("torch", "tensorrt_llm", "tensorrt-llm", "transformers", "numpy", "nvidia-cublas-cu13"):
        assert re.match(pattern, f"{name}==1.0", re.IGNORECASE), name
    assert not re.match(pattern, "lm-eval==0.4.10", re.IGNORECASE)
    assert "--constraint" in text
    assert "[trtllm]" not in text, "the image has it"


def test_the_slurm_script_is_bash() -> None:
    subprocess.run(["bash", "-n", str(ROOT / "examples/slurm-trtllm.sh")], check=True)
