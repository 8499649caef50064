"""The protocol of every engine: scoring, generation, a trace, and the facts that label its measurements."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from moe_eval.data.window import Window
from moe_eval.frozen import frozen
from moe_eval.records.labels import EngineFacts
from moe_eval.records.samples import EngineSteps

TokenIds = Sequence[int]
PositionIds = npt.NDArray[np.integer[Any]]  # token ids of every position, shape (positions, k)


@frozen
class WindowScores:
    """The scores of one window's n continuation tokens.

    Attributes:
        logprobs: natural-log probability of every token, float32, shape (n,).
        greedy: whether the token is the most probable one, bool, shape (n,). Of equally probable ones an engine may
            choose any. vLLM reports no tie, unless all other tokens of the window are the most probable ones.
        top_ids: the k most probable tokens, most probable first, int64, shape (n, k). k is 0 by default.
        top_logprobs: their natural-log probabilities, float32, shape (n, k).
        of_ids: the natural-log probabilities of the requested ids, float32, shape (n, ids of a position). Without
            requested ids it is (n, 0).
    """

    logprobs: npt.NDArray[np.float32]
    greedy: npt.NDArray[np.bool_]
    top_ids: npt.NDArray[np.int64]
    top_logprobs: npt.NDArray[np.float32]
    of_ids: npt.NDArray[np.float32]


@frozen
class GenerationRequest:
    """The settings to continue prompts with.

    Attributes:
        max_new_tokens: at most this many tokens are generated.
        min_new_tokens: no end-of-sequence token comes before this many.
        stop: texts that end a completion. The completion still holds the text that matched.
        stop_tokens: tokens that end a completion beside the end-of-sequence tokens.
        temperature: 0 is greedy.
        top_p, top_k: nucleus and top-k sampling. 1 and 0 turn them off.
        seed: of sampling. None leaves the engine's random state as it is.
        ignore_eos: go on to max_new_tokens even after an end-of-sequence token.
        further: what the engine's library takes by its own names, see sampling.toml.
        timed: return RequestTimes, which costs an engine some work.
    """

    max_new_tokens: int
    min_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_tokens: tuple[int, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    ignore_eos: bool = False
    further: Mapping[str, object] = field(default_factory=dict, hash=False)
    timed: bool = False


@frozen
class RequestTimes:
    """An engine's times of one request: seconds on its own clock since the first request of the batch arrived.

    Attributes:
        scheduled: the start of the first iteration that held the request.
        first_token, last_token: when these were produced.
    """

    scheduled: float
    first_token: float
    last_token: float


@frozen
class Completion:
    """The new tokens of one prompt, without the end-of-sequence token, and why they end.

    `times` is None if they were not requested or the engine measures none.
    """

    token_ids: tuple[int, ...]
    finish_reason: Literal["stop", "length"]
    times: RequestTimes | None = None


@frozen
class EngineSettings:
    """The user's settings of an engine. None leaves a setting to the checkpoint or the engine.

    Attributes:
        checkpoint: a folder or a hub name.
        precision: one of precision.PRECISIONS.
        dtype: `auto`, or torch's name of a floating-point type.
        device: torch's name of a device.
        max_length: the window in tokens.
        batch_size: the largest number of sequences in a batch. None lets the engine fill its memory.
        kv_tokens: tokens that the key-value cache has to hold for all sequences together. None lets it take the free
            memory.
        heaviest_bytes: the weights of the heaviest arm of a comparison. Limits that follow from the free memory are
            then the same for all arms.
        revision, trust_remote_code: as Transformers takes them.
        options: further settings by name. An engine refuses names that it does not know.
    """

    checkpoint: str
    precision: str | None = None
    dtype: str = "auto"
    device: str | None = None
    max_length: int | None = None
    batch_size: int | None = None
    kv_tokens: int | None = None
    heaviest_bytes: int | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    options: Mapping[str, object] = field(default_factory=dict)


@frozen
class TraceHandle:
    """Where a trace will be after its context."""

    path: Path


def unheard(_index: int, _result: object) -> None:
    """Ignore a finished result."""


class Engine(Protocol):
    """A loaded arm. Windows and prompts are token ids. Nothing here knows a tokenizer or the harness."""

    @property
    def facts(self) -> EngineFacts: ...

    def score(
        self,
        windows: Sequence[Window],
        top_k: int = 0,
        done: Callable[[int, WindowScores], None] = unheard,
        ids: Sequence[PositionIds] | None = None,
    ) -> list[WindowScores]:
        """Score every window, in order.

        Args:
            windows: each of at most max_length + 1 tokens in all.
            top_k: the number of most probable tokens to return for every position.
            done: called with every window's index and scores as soon as they are there, in any order. Scores before a
                failure can so be stored.
            ids: tokens of every continuation token's position, for every window, whose log-probabilities are returned
                as well (WindowScores.of_ids).

        Raises:
            UsageError: `ids` were requested and the engine cannot score them (EngineFacts.scores_ids).
        """
        ...

    def generate(
        self,
        prompts: Sequence[TokenIds],
        request: GenerationRequest,
        done: Callable[[int, Completion], None] = unheard,
    ) -> list[Completion]:
        """Continue every prompt, in order. Prompt and max_new_tokens have to fit into the model's window."""
        ...

    def routing(self, prompts: Sequence[TokenIds], max_new_tokens: int) -> list[npt.NDArray[np.int16]]:
        """The experts that every token goes through while the prompts are continued greedily.

        Returns:
            For every prompt the chosen experts' indices, shape (tokens, layers with a router, top k). Rows are the
            prompt's tokens, then the new tokens except the last.

        Raises:
            UsageError: this engine does not report experts, or was not loaded to report them (EngineKind.routing).
        """
        ...

    def trace(self, target: Path) -> AbstractContextManager[TraceHandle]:
        """Record the kernels that run inside the context into the file `target`."""
        ...

    def capture(self, name: str) -> AbstractContextManager[None]:
        """Have Nsight Systems, which this process runs under, record the kernels that run inside the context.

        Args:
            name: of the range around them, where they run in this process.

        Raises:
            UsageError: the workers cannot be recorded the way they were loaded (EngineKind.captures).
        """
        ...

    def close(self) -> None:
        """Release the model's memory. The engine cannot be used afterwards."""
        ...


@runtime_checkable
class StepReporter(Protocol):
    """An engine that may report its own steps."""

    def steps(self) -> EngineSteps | None:
        """What the engine says of its steps since the last call. None where it was not loaded to report them."""
        ...


@frozen
class ExpertsOfLayer:
    """The experts of one decoder layer.

    Attributes:
        layer: its index in the model. `module`: the path of the experts.
        experts: how many a router chooses from. `weights`: parameters of all of them, of `bytes_per_weight` each.
        is_fused: one tensor holds a matrix of all experts. Else they are separate layers, which cannot be quantised one
            at a time, and whose tokens are not counted.
    """

    layer: int
    module: str
    experts: int
    weights: int
    bytes_per_weight: int
    is_fused: bool


@frozen
class Variant:
    """A model of which the experts of one layer are quantised, or one of them. `expert` is None for all."""

    layer: int
    expert: int | None = None


class LayerwiseArm(Protocol):
    """A loaded arm whose experts are quantised a layer at a time, by emulation."""

    @property
    def facts(self) -> EngineFacts:
        """The labels of every variant."""

    @property
    def layers(self) -> Sequence[ExpertsOfLayer]:
        """The layers with experts, in the order of the model."""

    def score(
        self,
        windows: Sequence[Window],
        variants: Sequence[Variant],
        top_k: int,
        done: Callable[[Variant | None, int, WindowScores], None],
    ) -> npt.NDArray[np.int64]:
        """Score windows without quantisation and by every variant.

        Args:
            top_k: most probable tokens of the unquantised model, which every variant scores as well (of_ids). Variants
                return the most probable one alone.
            done: called with the variant, or None for the unquantised model, a window's index and its scores. The
                unquantised scores of a window come first.

        Returns:
            Tokens that the unquantised routers sent to every expert, shape (layers, experts). 0 where not counted.
        """
        ...

    def joint(self, windows: Sequence[Window], layers: Sequence[int], ids: Sequence[PositionIds]) -> list[WindowScores]:
        """Score windows in whole passes with the experts of several layers quantised. `ids` as of Engine.score."""
        ...


class LayerwiseEngine(Protocol):
    """An engine that emulates precisions, a layer at a time as well."""

    def by_layer(self, settings: EngineSettings) -> LayerwiseArm:
        """This arm with experts that are emulated a layer at a time. It is calibrated here, and stays unquantised.

        Args:
            settings: of the arm whose experts would all be emulated.

        Raises:
            UsageError: it has no experts, or layers that cannot be run by themselves.
        """
        ...
