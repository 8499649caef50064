"""The workload of a speed comparison, from a data set's text or from a seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from moe_eval.checkpoint import contents
from moe_eval.data import scoring_windows, workload
from moe_eval.data.workload import Shape, Workload
from moe_eval.errors import UsageError

SOURCES = (*scoring_windows.DATASETS, "random")


class CheckpointSettings(Protocol):
    """Where an arm's checkpoint comes from: a part of its engine settings."""

    @property
    def checkpoint(self) -> str: ...
    @property
    def revision(self) -> str | None: ...
    @property
    def trust_remote_code(self) -> bool: ...


def make_workload(dataset: str, seed: int, shapes: tuple[Shape, ...], tokenizer: Any, vocabulary: int) -> Workload:
    """The prompts of these shapes.

    Args:
        dataset: one of SOURCES. Text makes routing natural.
        seed: of `random`.
        tokenizer: of Transformers.
        vocabulary: the smallest of the arms that run the workload.

    Raises:
        UsageError: the data set cannot be read here, or is too short for the largest batch.
    """
    if dataset == "random":
        return workload.from_seed(seed, shapes, vocabulary, set(tokenizer.all_special_ids))
    if dataset not in SOURCES:
        raise UsageError(f"There is no data set {dataset!r}. Give one of {', '.join(SOURCES)}.")
    from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer

    return workload.from_text(
        [wikitext_detokenizer({"page": document}) for document in scoring_windows.read_documents(dataset)],
        lambda text: tokenizer.encode(text, add_special_tokens=False, verbose=False),
        shapes,
        vocabulary,
        f"{dataset}, tokenizer {tokenizer.name_or_path}, slices of {shapes[0].input_len} tokens",
    )


def of_arms(
    dataset: str, seed: int, shapes: tuple[Shape, ...], arms: Sequence[CheckpointSettings], tokenizer: str
) -> Workload:
    """The prompts that all arms run, within the smallest of their vocabularies.

    Args:
        arms: at least one. The first one's revision and trust_remote_code are those of the tokenizer.
        tokenizer: the folder or hub name of the tokenizer that cuts a text.

    Raises:
        UsageError: as for `make_workload`, or a checkpoint that does not state its vocabulary.
    """
    from moe_eval.checkpoint import tokenizer as tokenizers

    loaded = tokenizers.load(tokenizer, arms[0].revision, arms[0].trust_remote_code)
    return make_workload(dataset, seed, shapes, loaded, min(map(_vocabulary, arms)))


def _vocabulary(settings: CheckpointSettings) -> int:
    config = contents.read_config(contents.settings_folder(settings.checkpoint, settings.revision))
    size = contents.text_config(config).get("vocab_size")
    if size is None:
        raise UsageError(f"The config.json of {settings.checkpoint} states no vocab_size. Copy the checkpoint again.")
    return int(size)
