"""One shape of one arm: its figures, the routing of its batch, and the floors of its steps."""

from __future__ import annotations

from typing import Literal

from moe_eval.data.workload import Shape
from moe_eval.frozen import frozen
from moe_eval.records.samples import LatencyFigures, LatencyMetrics, Sample, Turn, WarmUp


@frozen
class Floor:
    """What bounds a step from below: the roofline model (Williams, Waterman and Patterson, CACM 52(4), 2009).

    With several GPUs the link between them is a third roof.

    Attributes:
        bytes: of weights and key-value cache that have to be moved. Activations are left out.
        flops: a multiplication and an addition each.
        memory_seconds: bytes at the measured rate of a copy.
        flops_seconds: flops at the measured rate of a matrix product. None where no rate of this type is known: then
            arithmetic is left out of `seconds`.
        seconds: the greatest of them, as if they overlapped without loss.
        bound: which of them it is.
        distinct_experts: of which the weights are read in every layer, mean.
        distinct_source: whether these were counted in the routing, or expected of independent uniform draws.
        link_bytes: that every GPU has to send to others. 0 on one GPU.
        link_seconds: link_bytes at the measured rate of the link. None where it is not known: then collectives are left
            out of `seconds`.
    """

    bytes: float
    flops: float
    memory_seconds: float
    flops_seconds: float | None
    seconds: float
    bound: Literal["memory", "compute", "link"]
    distinct_experts: float
    distinct_source: Literal["counted", "independent draws"]
    link_bytes: float = 0.0
    link_seconds: float | None = None


@frozen
class FloorReached:
    """A floor beside the measured time. `fraction` is predicted over measured; None where nothing was measured."""

    floor: Floor
    predicted_ms: float
    measured_ms: float | None
    fraction: float | None

    @property
    def on_link(self) -> float | None:
        """The share of the measured time that the bytes of collectives take at the link's rate. None on one GPU."""
        seconds = self.floor.link_seconds
        return 1000 * seconds / self.measured_ms if seconds and self.measured_ms else None


@frozen
class Floors:
    """The floors of one shape. None where there is no such step, or `no_floors` says why there are none."""

    prefill: FloorReached | None = None
    decode_step: FloorReached | None = None
    no_floors: str | None = None


@frozen
class Routing:
    """The routing of one batch size.

    Attributes:
        batch_size: the first prompts of the workload, run together.
        experts, top_k: of every layer with a router.
        steps: decode steps of which every prompt of the batch has a token.
        distinct: different experts per layer and decode step, mean over layers and steps. None without steps.
        independent: the same, expected of independent uniform draws (floors.expected_distinct).
        load: tokens, read and made, that went through an expert: by layer and expert.
        effective: exp(entropy of a layer's load), mean over layers: how many equally loaded experts it amounts to.
            Hill's number of order 1 (Hill, Ecology 54(2), 1973).
        max_over_mean: load of a layer's fullest expert over the mean, mean over layers.
        rank_load: the same tokens by the rank that holds their expert, all layers together, with expert parallelism.
        rank_max_over_mean: load of a layer's fullest rank over the mean, mean over layers. None without rank_load.
    """

    batch_size: int
    experts: int
    top_k: int
    steps: int
    distinct: float | None
    independent: float
    load: tuple[tuple[int, ...], ...]
    effective: float
    max_over_mean: float
    rank_load: tuple[int, ...] = ()
    rank_max_over_mean: float | None = None


@frozen
class ShapeLatency:
    """One shape of one arm.

    Attributes:
        num_iterations: timed ones. `warmup_iterations`: of every load.
        output_tokens_per_sec, prefill_tokens_per_sec: medians.
        experts_per_layer_step: distinct experts of a decode step, from the router. None where not counted.
        turns: what NVML saw. `warm_ups`: of every load. `loads`: the iterations of every load, in order.
    """

    name: str
    batch_size: int
    input_len: int
    output_len: int
    num_iterations: int
    warmup_iterations: tuple[int, ...]
    figures: LatencyFigures
    output_tokens_per_sec: float | None
    prefill_tokens_per_sec: float | None
    notes: tuple[str, ...]
    experts_per_layer_step: float | None
    experts_of_independent_draws: float | None
    floors: Floors
    turns: tuple[Turn, ...]
    warm_ups: tuple[WarmUp, ...]
    loads: tuple[tuple[Sample, ...], ...]

    @property
    def shape(self) -> Shape:
        """The sizes."""
        return Shape(self.batch_size, self.input_len, self.output_len)

    @property
    def metrics(self) -> LatencyMetrics:
        """Its figures by name."""
        return self.figures.metrics
