"""GPUs without CUDA in this process: a driver compiled here, whose calls are CUDA's documented ones, is the oracle."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from moe_eval.machine import hardware
from moe_eval.machine.hardware import Gpu

# cuda.h: cuInit, cuDeviceGetCount and what torch's properties are made of
_SOURCE = r"""
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
static int is_ready;
int cuInit(unsigned flags) { is_ready = 1; return getenv("BROKEN") ? 999 : 0; }
int cuDeviceGetCount(int *count) { *count = strlen(getenv("CUDA_VISIBLE_DEVICES")); return is_ready ? 0 : 3; }
int cuDeviceGet(int *device, int index) { *device = getenv("CUDA_VISIBLE_DEVICES")[index] - '0'; return 0; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, device ? "NVIDIA H200" : "L4", size); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = 150109880320u - (size_t)device; return 0; }
int cuDeviceGetAttribute(int *value, int name, int device) { *value = name == 75 ? 9 - device : name; return 0; }
int cuDeviceGetUuid_v2(char *bytes, int device) {
    for (int at = 0; at < 16; at++) bytes[at] = at * 16 + device;
    return 0;
}
"""


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a driver that shows as many GPUs as CUDA_VISIBLE_DEVICES has digits."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    folder = tmp_path_factory.mktemp("driver")
    command = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", str(folder / "libcuda.so.1")]
    subprocess.run(command, input=_SOURCE.encode(), check=True)
    return folder


@pytest.fixture(autouse=True)
def _cuda_is_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build of torch for CUDA, any use of which fails, and a driver that has not been asked."""

    def touched(*_: object) -> None:
        raise AssertionError("CUDA is initialised in this process")

    monkeypatch.setattr(hardware, "_cuda", lambda: "13.0")
    monkeypatch.setattr(hardware, "_by_driver", cache(hardware._by_driver.__wrapped__))
    for name in ("_lazy_init", "device_count", "is_available", "get_device_properties"):
        monkeypatch.setattr(torch.cuda, name, touched)


def test_the_driver_says_what_torch_would(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(driver))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "10")
    first = Gpu("NVIDIA H200", "8.76", 150109880319, "GPU-01112131-4151-6171-8191-a1b1c1d1e1f1")
    second = Gpu("L4", "9.76", 150109880320, "GPU-00102030-4050-6070-8090-a0b0c0d0e0f0")
    assert hardware.gpus() == (first, second)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert hardware.gpus() == (second,)


@pytest.mark.parametrize("variable", ["BROKEN", None])
def test_without_an_answer_of_the_driver_torch_is_asked(
    driver: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str | None
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(driver if variable else tmp_path))
    monkeypatch.setenv(variable or "CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert hardware.gpus() == ()


def test_where_cuda_is_in_use_torch_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(hardware, "_by_driver", lambda _: pytest.fail("the driver was asked"))
    assert hardware.gpus() == ()


def test_a_librarys_own_use_of_cuda_is_known(driver: Path) -> None:
    program = (
        "import ctypes; from moe_eval.machine.cuda_driver import is_initialised as ready\n"
        "print(ready(), ctypes.CDLL('libcuda.so.1').cuInit(0), ready())"
    )
    variables = {**os.environ, "LD_LIBRARY_PATH": str(driver), "CUDA_VISIBLE_DEVICES": "0"}
    done = subprocess.run([sys.executable, "-c", program], env=variables, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "0", "True"]
