"""The workload of a speed comparison: from a data set's text, or from a seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moe_eval.checkpoint import contents
from moe_eval.data import scoring_windows
from moe_eval.data import workload as made
from moe_eval.data.workload import Shape, Workload
from moe_eval.errors import UsageError
from moe_eval.runner.arm_plan import Arm

SOURCES = (*scoring_windows.DATASETS, "random")


def workload(dataset: str, seed: int, shapes: tuple[Shape, ...], tokenizer: Any, vocabulary: int) -> Workload:
    """The prompts of these shapes.

    Args:
        dataset: one of SOURCES; text is what makes routing natural.
        seed: of `random`.
        tokenizer: of Transformers.
        vocabulary: the smallest of the arms that are to run it.

    Raises:
        UsageError: the data set cannot be read here, or is too short for the largest batch.
    """
    if dataset == "random":
        return made.from_seed(seed, shapes, vocabulary, set(tokenizer.all_special_ids))
    if dataset not in SOURCES:
        raise UsageError(f"There is no data set {dataset!r}; choose {', '.join(SOURCES)}.")
    from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer

    pages = scoring_windows.pages(dataset)
    return made.from_text(
        [wikitext_detokenizer({"page": page}) for page in pages],
        lambda text: tokenizer.encode(text, add_special_tokens=False, verbose=False),
        shapes,
        vocabulary,
        f"{dataset}, tokenizer {tokenizer.name_or_path}, slices of {shapes[0].input_len} tokens",
    )


def of_arms(dataset: str, seed: int, shapes: tuple[Shape, ...], arms: Sequence[Arm], tokenizer: str) -> Workload:
    """The prompts that all arms run: within the smallest of their vocabularies.

    Args:
        tokenizer: the folder or hub name of the one that cuts a text.

    Raises:
        UsageError: as `workload`, or a checkpoint that does not say its vocabulary.
    """
    from moe_eval.checkpoint import tokenizer as tokens

    sizes = []
    for each in arms:
        name = each.settings.checkpoint
        config = contents.read_config(contents.settings_folder(name, each.settings.revision))
        size = {**config, **(config.get("text_config") or {})}.get("vocab_size")
        if size is None:
            raise UsageError(f"The config.json of {name} states no vocab_size; copy the checkpoint again.")
        sizes.append(int(size))
    return workload(dataset, seed, shapes, tokens.load(tokenizer, arms[0].settings), min(sizes))
