"""Options for the text that is read, and how much of it is scored."""

from __future__ import annotations

from moe_eval.cli.options.evaluators import SCORED
from moe_eval.cli.options.option import option
from moe_eval.data.scoring_windows import DATASETS
from moe_eval.frozen import frozen

_TEXT, QUALITY = "text", "quality"


@frozen(kw_only=True)
class TextOptions:
    """What the arms read."""

    dataset: str = option(
        "wikitext",
        f"the text: {', '.join(DATASETS)}. For prompts alone also random, which makes token ids up",
        _TEXT,
        suggestions=(*DATASETS, "random"),
    )
    input_len: int = option(512, "tokens of every window and of every prompt", _TEXT)


@frozen(kw_only=True)
class QualityOptions(TextOptions):
    """What is scored."""

    num_chunks: int = option(
        100, "windows to score, spread over all documents, 0 for all", QUALITY, minimum=0, needs=SCORED
    )
