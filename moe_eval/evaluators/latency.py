"""The latency evaluator: how long one arm takes for one shape, by every clock there is."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from moe_eval.data.workload import Shape
from moe_eval.engines.base import Completion, Engine, GenerationRequest, StepReporter, TokenIds
from moe_eval.errors import EngineError, UsageError
from moe_eval.evaluators.warm_up import ended
from moe_eval.frozen import frozen
from moe_eval.machine.nvml import Nvml
from moe_eval.records.samples import Sample, WarmUp

# NVML's energy counter moves in steps of about 0.1 s, so that of a call this long a tenth is uncertain at worst, in
# either direction; of a shorter one it says nothing
_ENERGY_SECONDS = 1.0
_PROFILERS = {"NSYS_PROFILING_SESSION_ID": "Nsight Systems", "NV_COMPUTE_PROFILER_PERFWORKS_DIR": "Nsight Compute"}


# devices whose profiler has run in this process: CUPTI stays attached to it
_traced: list[str] = []


@frozen
class Clock:
    """Times calls of an engine by the host's clock, and by CUDA events where its work is in this process."""

    engine: Engine
    nvml: Nvml

    @property
    def events(self) -> bool:
        """Whether CUDA events see the engine's work."""
        return self.engine.facts.worker == "in_process" and self.engine.facts.device.startswith("cuda")

    def time(self, prompts: Sequence[TokenIds], new_tokens: int) -> tuple[dict[str, float], list[Completion]]:
        """Seconds by source of one call, and what it made.

        Raises:
            EngineError: a completion has another length than was asked for.
        """
        request = GenerationRequest(max_new_tokens=new_tokens, ignore_eos=True, timed=True)
        seconds: dict[str, float] = {}
        if self.events:
            edges = [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()
            edges[0].record()
        start = time.perf_counter()
        completions = self.engine.generate(prompts, request)
        seconds["host"] = time.perf_counter() - start
        if self.events:
            edges[1].record()
            edges[1].synchronize()
            seconds["cuda_events"] = edges[0].elapsed_time(edges[1]) / 1000
        for completion in completions:
            if len(completion.token_ids) != new_tokens:
                raise EngineError(
                    f"{self.engine.facts.name} made {len(completion.token_ids)} tokens where {new_tokens} were asked "
                    "for. No timing of this arm would be right."
                )
        return seconds, completions

    def sample(self, prompts: Sequence[TokenIds], new_tokens: int) -> Sample:
        """One iteration."""
        first, _ = self.time(prompts, 1)
        energy = self.nvml.energy_joules()
        started = time.perf_counter()
        last, completions = self.time(prompts, new_tokens)
        ended = time.perf_counter()
        after = self.nvml.energy_joules()
        used = None
        if energy is not None and after is not None and ended - started >= _ENERGY_SECONDS:
            used = after - energy
        times = [completion.times for completion in completions if completion.times is not None]
        request_first = None
        if len(times) == len(completions):
            first_tokens = [request.first_token for request in times]
            first["engine"], last["engine"] = max(first_tokens), max(request.last_token for request in times)
            request_first = statistics.median(first_tokens)
        return Sample(started, ended, first, last, request_first, used)


def refuse_profiler(environment: Mapping[str, str] = os.environ) -> None:
    """Refuse to time under a profiler, which slows launches down by more than any precision gains.

    Raises:
        UsageError: names the profiler.
    """
    profiler = next((title for name, title in _PROFILERS.items() if environment.get(name)), None)
    if profiler is None and torch._C._autograd._profiler_enabled():
        profiler = "torch's profiler"
    if profiler:
        raise UsageError(f"Nothing is timed under {profiler}. Run without it (for a trace give --mode nsys).")


def mark_traced(engine: Engine) -> None:
    """Remember that the GPU's profiler has run where this engine works."""
    if engine.facts.device.startswith("cuda"):
        _traced.append(engine.facts.device)


def refuse_traced() -> None:
    """Refuse to time what comes after a trace of this process.

    Raises:
        UsageError: with the order that works.
    """
    if _traced:
        raise UsageError(
            "A profiler has run in this process, so nothing is timed in it any more. Name moe_latency before "
            "moe_kernels, or time in a fresh process."
        )


def check(engine: Engine, shape: Shape) -> None:
    """Refuse a shape that the loaded engine cannot run as one batch.

    Raises:
        UsageError: with what it can.
    """
    facts = engine.facts
    if facts.emulated:
        raise UsageError(
            f"{facts.precision} is emulated here, so its speed says nothing. Time it on an engine that runs it."
        )
    if shape.input_len + shape.output_len > facts.max_length:
        raise UsageError(
            f"{shape.input_len} tokens and {shape.output_len} new ones do not fit into the window of "
            f"{facts.max_length} tokens. Give shorter ones."
        )
    if facts.max_batch is not None and shape.batch_size > facts.max_batch:
        raise UsageError(
            f"{shape.batch_size} sequences are more than this arm runs at once ({facts.max_batch}). Load it with a "
            "larger batch size."
        )


def warm_up(clock: Clock, prompts: Sequence[TokenIds], shape: Shape, minimum: int, worked: float = 0.0) -> WarmUp:
    """Run whole iterations, at least `minimum`, until their times have settled (warm_up.ended, which has `worked`)."""
    on_gpu = clock.engine.facts.device.startswith("cuda")
    seconds: list[float] = []
    temperatures: list[tuple[float, ...]] = []
    while True:
        call_seconds, _ = clock.time(prompts, shape.output_len)
        seconds.append(call_seconds["host"])
        temperatures.append(clock.nvml.temperatures())
        reason = ended(seconds, temperatures, minimum, on_gpu=on_gpu, worked=worked)
        if reason is not None:
            return WarmUp(tuple(seconds), reason)


def measure(engine: Engine, prompts: Sequence[TokenIds], shape: Shape, iterations: int, nvml: Nvml) -> list[Sample]:
    """Time iterations of one shape."""
    refuse_profiler()
    refuse_traced()
    check(engine, shape)
    clock = Clock(engine, nvml)
    reporter = engine if isinstance(engine, StepReporter) else None
    if reporter:
        reporter.steps()  # what came before
    samples = [clock.sample(prompts, shape.output_len) for _ in range(iterations)]
    return [*samples[:-1], replace(samples[-1], steps=reporter.steps())] if reporter else samples
