"""What an arm's process does on request: functions of (engine, tokenizer, arguments) that return a record's part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from moe_eval.checkpoint.contents import read_object
from moe_eval.data import scoring_windows
from moe_eval.data.harness_tasks import TaskOptions
from moe_eval.data.scoring_windows import WindowSet
from moe_eval.data.workload import Shape, Workload, from_json
from moe_eval.engines.base import Engine, EngineSettings, LayerwiseEngine
from moe_eval.engines.endpoint.load import Endpoint
from moe_eval.evaluators import kernels as tracing
from moe_eval.evaluators import latency
from moe_eval.evaluators import quality as scoring
from moe_eval.evaluators import routing as router
from moe_eval.evaluators import sensitivity as layerwise
from moe_eval.evaluators.kernels import CapturedRun
from moe_eval.evaluators.quality import Scores
from moe_eval.machine import hardware, links
from moe_eval.machine.nvml import Nvml
from moe_eval.machine.rates import Rates, measure_rates, slowest
from moe_eval.records.kernels import KernelsRecord
from moe_eval.records.labels import EngineFacts
from moe_eval.records.quality import QualityFigures
from moe_eval.records.samples import Sample, WarmUp
from moe_eval.records.sensitivity import SensitivityFigures
from moe_eval.records.shape_latency import Routing
from moe_eval.records.tasks import EvaluatedSuite


def quality(
    engine: Engine,
    tokenizer: Any,
    *,
    arrays: str,
    dataset: str,
    input_len: int,
    num_chunks: int,
    alone: bool = False,
    reference: str | None = None,
) -> QualityFigures:
    """Score a data set: writes the arrays, returns the figures.

    Args:
        alone: score every window in a batch of its own. What that changes is the noise of batching.
        reference: the arrays of the arm that this one will be compared with.

    Raises:
        EngineError: a score is no number. The arrays are there to look into.
    """
    from tqdm import tqdm

    cut = _windows(tokenizer, dataset, input_len, num_chunks)
    facts = engine.facts
    with tqdm(total=len(cut.windows), desc=f"{facts.precision} on {facts.name}", unit="window", disable=None) as bar:
        scores = scoring.measure(
            engine,
            cut,
            done=lambda *_: bar.update(),
            alone=alone,
            reference=Scores.load(Path(reference)) if reference else None,
        )
    scores.save(Path(arrays))
    scores.check()
    return scoring.figures(scores, cut, dataset)


def tasks(
    engine: Engine | Endpoint,
    tokenizer: Any,
    *,
    folder: str,
    answers: str,
    spec: str,
    options: Mapping[str, object],
    repeat: int,
    window: int | None,
) -> EvaluatedSuite:
    """Evaluate a task or group of the harness.

    Args:
        folder: where its results and samples are written.
        answers: the file of the model's answers. What it holds already is not asked again.
        window: the most tokens of a text, None for those of the model.
    """
    from moe_eval.evaluators import tasks as harness
    from moe_eval.evaluators.endpoint_model import endpoint_model, failures
    from moe_eval.evaluators.engine_model import EngineLM

    place = harness.Place(Path(folder), Path(answers))
    task_options = msgspec.convert(options, TaskOptions)
    if isinstance(engine, Endpoint):
        with failures(engine):
            model = endpoint_model(engine, repeat, window)
            return harness.evaluate(model, engine.facts, spec, task_options, place=place, repeat=repeat)
    model = EngineLM(engine, tokenizer, window=window)
    return harness.evaluate(model, engine.facts, spec, task_options, place=place, repeat=repeat)


def _windows(tokenizer: Any, dataset: str, input_len: int, num_chunks: int) -> WindowSet:
    bos = tokenizer.bos_token_id
    return scoring_windows.cut(
        scoring_windows.read_documents(dataset),
        lambda text: list(tokenizer.encode(text, verbose=False)),
        int(tokenizer.eos_token_id if bos is None else bos),
        input_len,
        num_chunks,
    )


def sensitivity(
    engine: LayerwiseEngine,
    tokenizer: Any,
    *,
    settings: Mapping[str, object],
    dataset: str,
    input_len: int,
    num_chunks: int,
    max_kld: float,
    experts: int,
) -> tuple[SensitivityFigures, EngineFacts]:
    """Quantise the experts of every layer alone. `settings`: of the arm whose experts would all be emulated.

    Returns:
        The figures, and the labels of the emulated variants.
    """
    from tqdm import tqdm

    arm = engine.by_layer(msgspec.convert(settings, EngineSettings))
    cut = _windows(tokenizer, dataset, input_len, num_chunks)
    with tqdm(desc=f"{arm.facts.precision} by layer", unit="window", disable=None) as bar:
        figures = layerwise.measure(arm, cut, dataset, max_kld=max_kld, experts=experts, done=bar.update)
    return figures, arm.facts


@cache
def _frozen(file: str) -> Workload:
    return from_json(read_object(Path(file)))


def warm_up(
    engine: Engine,
    _: Any,
    *,
    workload: str,
    shape: Mapping[str, int],
    minimum: int,
    uuids: Sequence[str],
    worked: float = 0.0,
) -> WarmUp:
    """Warm an arm up for one shape of the workload in a file. `worked`: as of warm_up.ended."""
    latency.refuse_profiler()
    sizes = Shape(**shape)
    latency.check(engine, sizes)
    with Nvml.open(uuids) as nvml:
        return latency.warm_up(latency.Clock(engine, nvml), _frozen(workload).prompts(sizes), sizes, minimum, worked)


def measure(
    engine: Engine, _: Any, *, workload: str, shape: Mapping[str, int], iterations: int, uuids: Sequence[str]
) -> list[Sample]:
    """Time iterations of one shape of the workload in a file."""
    sizes = Shape(**shape)
    with Nvml.open(uuids) as nvml:
        return latency.measure(engine, _frozen(workload).prompts(sizes), sizes, iterations, nvml)


def routing(
    engine: Engine, _: Any, *, workload: str, shape: Mapping[str, int], experts: int, batch_sizes: Sequence[int]
) -> dict[int, Routing]:
    """Count the experts that the prompts of a shape and their continuations go through."""
    sizes = Shape(**shape)
    arrays = engine.routing(_frozen(workload).prompts(sizes), sizes.output_len)
    return router.read(arrays, sizes.input_len, experts, batch_sizes, engine.facts.expert_ranks)


def kernels(
    engine: Engine, _: Any, *, workload: str, shape: Mapping[str, int], folder: str, name: str
) -> KernelsRecord:
    """Trace one short run of a shape of the workload in a file. The trace stays in a folder under a name."""
    sizes = Shape(**shape)
    return tracing.measure(engine, _frozen(workload).prompts(sizes), sizes, Path(folder), name)


def capture(engine: Engine, _: Any, *, workload: str, shape: Mapping[str, int]) -> CapturedRun:
    """Run a shape of the workload in a file in a capture of Nsight Systems, which this process runs under."""
    sizes = Shape(**shape)
    return tracing.capture(engine, _frozen(workload).prompts(sizes), sizes)


def rates(
    _engine: None, _: None, *, device: str, groups: Sequence[tuple[Sequence[int], Sequence[int]]] = ()
) -> list[Rates]:
    """Measure what groups of GPUs can do at most. It needs no loaded arm.

    Args:
        device: torch's name of the run's first GPU, or of what is measured where there are no groups.
        groups: indices of the run's GPUs, and how many neighbours among them share a layer.
    """
    if not groups:
        return [measure_rates(device)]
    first = hardware.first_index(device)
    gpus = sorted({gpu for group, _ in groups for gpu in group})
    alone = {gpu: measure_rates(f"cuda:{first + gpu}") for gpu in gpus}  # once, also where groups share it
    measured = []
    for group, counts in groups:
        rates_of_link = {count: links.slowest([first + gpu for gpu in group], count) for count in counts}
        measured.append(
            replace(
                slowest([alone[gpu] for gpu in group]),
                gpus=tuple(group),
                link_bytes_per_s={count: rate for count, rate in rates_of_link.items() if isinstance(rate, float)},
                no_links=next((reason for reason in rates_of_link.values() if isinstance(reason, str)), None),
            )
        )
    return measured
