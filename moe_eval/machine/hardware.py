"""The facts of the machine and its libraries that label every record."""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path

from moe_eval.errors import UsageError
from moe_eval.frozen import frozen

_RESULT_DEPENDS_ON = ("moe-eval", "lm-eval", "datasets", "torch", "transformers", "safetensors", "tensorrt-llm", "vllm")


# of NVIDIA, of NVIDIA on Jetson, of AMD, and of Windows beneath Linux
_DEVICES = ("nvidia*", "nv*gpu*", "kfd", "dxg")


@frozen
class Gpu:
    """One GPU: its name, compute capability such as `9.0`, memory in bytes, and NVIDIA's UUID."""

    name: str
    capability: str
    memory_bytes: int
    uuid: str | None

    @property
    def sm(self) -> int:
        """The compute capability as one number: 90 for `9.0`."""
        return int(self.capability.replace(".", ""))


@frozen
class Machine:
    """The machine that made a record. It has no host or user name, since records are shared.

    Attributes:
        os, python, cpu: names and versions.
        cores: logical processors this process may use.
        memory_bytes: physical memory.
        gpus: as torch sees them, after CUDA_VISIBLE_DEVICES.
        driver: the NVIDIA driver's version.
        cuda: the CUDA version torch was built with.
    """

    os: str
    python: str
    cpu: str
    cores: int
    memory_bytes: int | None
    gpus: tuple[Gpu, ...]
    driver: str | None
    cuda: str | None


def gpus() -> tuple[Gpu, ...]:
    """The GPUs that torch sees.

    Where the system has no device of a GPU, torch is not imported to look for one. CUDA is not initialised here.
    """
    torch = sys.modules.get("torch")
    if sys.platform == "linux" and torch is None and not any(map(_has_device, _DEVICES)):
        return ()
    is_initialised = torch is not None and torch.cuda.is_initialized()
    by_driver = _by_driver(os.environ.get("CUDA_VISIBLE_DEVICES")) if _cuda() and not is_initialised else None
    return _by_torch() if by_driver is None else by_driver


@cache
def _by_driver(_visible: str | None) -> tuple[Gpu, ...] | None:
    from moe_eval.machine import cuda_driver

    properties = cuda_driver.properties()
    return None if properties is None else tuple(Gpu(*row) for row in properties)


def _by_torch() -> tuple[Gpu, ...]:
    import torch

    visible = []
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        uuid = getattr(device, "uuid", None)
        capability = f"{device.major}.{device.minor}"
        visible.append(Gpu(device.name, capability, device.total_memory, None if uuid is None else f"GPU-{uuid}"))
    return tuple(visible)


def gpus_from(device: str | None) -> tuple[Gpu, ...]:
    """The GPUs that torch sees, from the device of this torch name on. None for a device that is no GPU."""
    is_gpu = str(device or "cuda").partition(":")[0] == "cuda"
    return gpus()[first_index(device) :] if is_gpu else ()


def first_index(device: str | None) -> int:
    """The index in a torch name of a device. 0 where it has none."""
    index = str(device).partition(":")[2]
    return int(index) if index.isdecimal() else 0


def check_device(name: str) -> None:
    """Refuse a device that this machine does not have.

    Raises:
        UsageError: there is no such device.
    """
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if (
        device is None
        or device.type not in ("cpu", "cuda")
        or (device.type == "cuda" and (device.index or 0) >= len(gpus()))
    ):
        raise UsageError(f"There is no device {name!r} here. Give cpu, or cuda:N for a GPU that torch sees.")


def _has_device(pattern: str) -> bool:
    return any(Path("/dev").glob(pattern))


def machine() -> Machine:
    """Read the facts of this machine."""
    import platform

    return Machine(
        os=platform.platform(),
        python=platform.python_version(),
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=_memory(),
        gpus=gpus(),
        driver=_driver(),
        cuda=_cuda(),
    )


def versions() -> dict[str, str]:
    """Versions of the installed libraries that a result depends on."""
    import importlib.metadata

    installed = {}
    for name in _RESULT_DEPENDS_ON:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def git_state() -> str | None:
    """The commit of the repository that tracks moe_eval's source, with `-dirty` behind it if files differ.

    None if no repository tracks it. An installed package may lie inside a repository that does not track it.
    """
    import subprocess

    try:
        file = Path(__file__).resolve()
        _git(file.parent, "ls-files", "--error-unmatch", file.name)
        return _git(file.parent, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*") or None
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    import subprocess

    command = ["git", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=10, check=True).stdout.strip()


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    import platform

    return platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def _cuda() -> str | None:
    """The CUDA version of torch, from a file of two lines: importing torch takes seconds."""
    from importlib.util import find_spec, module_from_spec, spec_from_file_location

    torch = find_spec("torch")
    file = Path(torch.origin or "").with_name("version.py") if torch else Path()
    spec = spec_from_file_location("torch_version", file) if file.is_file() else None
    if spec is None or spec.loader is None:
        return None
    version = module_from_spec(spec)
    spec.loader.exec_module(version)
    return getattr(version, "cuda", None)


def _driver() -> str | None:
    version = Path("/sys/module/nvidia/version")
    return version.read_text().strip() if version.is_file() else None
