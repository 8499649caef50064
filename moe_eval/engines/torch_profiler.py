"""torch's profiler around what an engine runs in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def record(target: Path, *, cuda: bool, all_threads: bool) -> Iterator[None]:
    """Record what runs inside, and write the trace afterwards.

    Args:
        target: the file of the trace.
        cuda: whether to record a GPU's kernels.
        all_threads: record the operators of other threads as well. Kernels are recorded whoever launched them.
    """
    import torch

    activities = [torch.profiler.ProfilerActivity.CPU]
    if cuda:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    config = torch._C._profiler._ExperimentalConfig(profile_all_threads=True) if all_threads else None
    with torch.profiler.profile(activities=activities, experimental_config=config) as profiler:
        yield
        if cuda:
            torch.cuda.synchronize()
    profiler.export_chrome_trace(str(target))
