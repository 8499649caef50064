"""The labels of a measurement: what ran, on what, and what it was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from enum import Enum
from typing import Literal

from moe_eval.frozen import frozen
from moe_eval.machine.hardware import Machine

# what an option of a command may be in a record
OptionValue = bool | int | float | str | tuple[int | float | str, ...] | None


UNKNOWN = "not known"  # a label of what cannot be asked


@frozen
class EngineFacts:
    """The labels of whatever this engine measures. None means that the engine cannot know it.

    Attributes:
        version: of the engine's library.
        checkpoint: what was loaded, as the user named it.
        fingerprint: identifies the checkpoint's files (see checkpoint.fingerprint).
        architecture: the model class; `vocabulary` is the number of its output logits.
        precision: what the expert GEMMs compute in; `emulated` when only its rounding is computed.
        dtype: of weights and activations outside quantised layers.
        device: torch's name of the device, and `device_name` the hardware's.
        max_length: the window in tokens: what the model reads at once.
        worker: `in_process` or `spawned`, as observed.
        attention_backend, moe_backend_requested, moe_backend_observed: which implementations ran.
        kv_cache_dtype: of the key-value cache during generation.
        cuda_graph_batch_sizes: batch sizes that run as CUDA graphs; empty for none.
        cuda_graph_padding: whether a batch between two of them runs as the larger one, rather than without a graph.
        scores_from: what log-probabilities are read from, and what that was checked against.
        scores_ids: whether it returns the log-probabilities of any requested tokens, beside the most probable ones.
        quant_algo: how weights and activations are quantised, as the engine or the checkpoint names it; `none`.
        weights: `checkpoint`, or `random` where the engine made them up: then speed counts and no score does.
        max_batch: the most sequences in one step; None where there is no limit.
        max_step_tokens: the most tokens that one step reads, so that longer prompts are read over several; None where
            there is no limit.
        gpus: over how many GPUs the model is spread; 0 on a CPU.
        weight_bytes: of the loaded weights by `experts` (those a router chooses from), `embedding` (only rows of it are
            read), `encoders` (of images or sound, which token ids do not go through) and `other` (all of it is read in
            every step; a head that is the embedding counts here).
        expert_ranks: the rank that holds each expert. None where every rank has a part of each.
        kv_cache_tokens: that the key-value cache holds as it was loaded, of all sequences together; None where the
            engine does not say, or its cache grows.
        moe_degraded_from: why the engine did not honour the requested implementation of experts, in its own words.
        moe_tactic: of the implementation of experts, as observed.
        unobserved: a line for every label that the engine's version keeps where it could not be read.
        arguments: what the engine's library was given beyond the labels above, by the library's own names.
    """

    name: str
    version: str
    checkpoint: str
    fingerprint: str
    architecture: str
    vocabulary: int
    precision: str
    emulated: bool
    dtype: str
    device: str
    device_name: str
    max_length: int
    worker: Literal["in_process", "spawned"] | None
    attention_backend: str | None
    moe_backend_requested: str | None
    moe_backend_observed: str | None
    kv_cache_dtype: str | None
    cuda_graph_batch_sizes: tuple[int, ...] | None
    scores_from: str
    scores_ids: bool = False
    quant_algo: str | None = None
    weights: Literal["checkpoint", "random"] = "checkpoint"
    max_batch: int | None = None
    max_step_tokens: int | None = None
    gpus: int = 0
    weight_bytes: Mapping[str, int] | None = None
    cuda_graph_padding: bool | None = None
    kv_cache_tokens: int | None = None
    expert_ranks: tuple[int, ...] | None = None
    moe_degraded_from: str | None = None
    moe_tactic: str | None = None
    unobserved: tuple[str, ...] = ()
    arguments: Mapping[str, object] = field(default_factory=dict)

    def decodes_by_graph(self, batch_size: int) -> bool | None:
        """Whether a decode step of so many sequences runs as a CUDA graph. None where nobody can tell."""
        sizes = self.cuda_graph_batch_sizes
        if sizes is None or not self.device.startswith("cuda"):
            return None
        if batch_size in sizes:
            return True
        return bool(sizes) and batch_size < max(sizes) and self.cuda_graph_padding is not False


@frozen
class ArmLabels:
    """What an arm's process said of itself once it was loaded.

    Attributes:
        engine: None where nothing was loaded.
        prefix_token_id: conditions the first token of a document.
        tokenizer: the folder or hub name.
    """

    engine: EngineFacts | None = None
    prefix_token_id: int | None = None
    tokenizer: str | None = None


@frozen
class ArmSettings:
    """What an arm was planned to be, beside its name.

    Attributes:
        engine: its name.
        checkpoint: a folder or a hub name.
        precision: that the checkpoint holds, or that the engine quantises it to while it loads.
        options: of the engine by name, secrets removed.
        environment: variables that its process has beside those of the command.
        gpus: indices into the machine's GPUs where its first load runs. Empty on a CPU.
    """

    engine: str
    checkpoint: str
    precision: str
    options: Mapping[str, OptionValue] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    gpus: tuple[int, ...] = ()


@frozen
class Origin:
    """Where and by which command a record was made.

    Attributes:
        run_id: 32 hexadecimal digits, the same for all arms of a run. None where no run is known.
        options: of the command, secrets removed.
        machine, versions, git: None or empty where the record is of a trace alone.
        arm: the arm's settings. None where they were not recorded.
    """

    run_id: str | None = None
    options: Mapping[str, OptionValue] = field(default_factory=dict)
    machine: Machine | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    git: str | None = None
    arm: ArmSettings | None = None


class Status(str, Enum):
    """How a measurement ended."""

    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    KILLED = "killed"
    SKIPPED = "skipped"
