"""What NVIDIA's driver says of the GPUs, asked in a process of its own: `python -m moe_eval.machine.cuda_driver`.

A process that has initialised CUDA cannot fork one that uses it. vLLM then starts its engine core and each of its
workers as a fresh interpreter that imports vLLM again (_maybe_force_spawn of vllm/utils/system_utils.py, 0.22).
NVML needs no CUDA, but its total memory counts what the driver reserves, which torch's does not.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import uuid
from typing import NamedTuple

_SECONDS = 60.0  # drivers without persistence mode wake every GPU up first
_LIBRARY = "libcuda.so.1"
# cuda.h: CUresult and CUdevice_attribute
_NOT_INITIALISED = 3  # CUDA_ERROR_NOT_INITIALIZED
_CAPABILITY = (75, 76)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


class Properties(NamedTuple):
    """One GPU, with the figures of torch.cuda.get_device_properties."""

    name: str
    capability: str
    memory_bytes: int
    uuid: str


def properties() -> tuple[Properties, ...] | None:
    """The GPUs that CUDA shows to this process, in its order. None where the driver cannot be asked."""
    command = [sys.executable, "-m", "moe_eval.machine.cuda_driver"]
    try:
        answer = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return tuple(Properties(*row) for row in json.loads(answer))


def is_initialised() -> bool:
    """Whether anything in this process has initialised CUDA: before, the driver refuses every call."""
    try:
        driver = ctypes.CDLL(_LIBRARY)
    except OSError:
        return False
    return int(driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int()))) != _NOT_INITIALISED


def main() -> None:
    """Print the properties as JSON.

    Raises:
        OSError: there is no driver, or it fails.
    """
    driver = ctypes.CDLL(_LIBRARY)

    def call(name: str, *arguments: object) -> None:
        code = getattr(driver, name)(*arguments)
        if code:
            raise OSError(f"{name} of CUDA's driver failed with {code}")

    count = ctypes.c_int()
    call("cuInit", 0)
    call("cuDeviceGetCount", ctypes.byref(count))
    rows = []
    for index in range(count.value):
        device, memory, name = ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(256)
        identity, capability = ctypes.create_string_buffer(16), [ctypes.c_int() for _ in _CAPABILITY]
        call("cuDeviceGet", ctypes.byref(device), index)
        call("cuDeviceGetName", name, len(name), device)
        call("cuDeviceTotalMem_v2", ctypes.byref(memory), device)
        call("cuDeviceGetUuid_v2", identity, device)
        for part, attribute in zip(capability, _CAPABILITY, strict=True):
            call("cuDeviceGetAttribute", ctypes.byref(part), attribute, device)
        version = ".".join(str(part.value) for part in capability)
        rows.append(Properties(name.value.decode(), version, memory.value, f"GPU-{uuid.UUID(bytes=identity.raw)}"))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
