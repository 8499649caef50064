"""The bytes of weights that a step of a loaded model reads, by part of the model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

# shared experts, which every token goes through, may lie in the same module
_EXPERT = re.compile(r"\.experts\.(?!.*shared)|\.block_sparse_moe\.(input|output)_linear\.")
_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in|embeddings?)\.weight$")
# further tables, which are no head in any model
_TABLE = re.compile(r"(^|\.)embed_tokens_per_layer\.weight$")
# parts for images and sound, which token ids do not go through
_ENCODER = re.compile(
    r"(^|\.)(visual|vision_\w+|image_\w+|audio_\w+|sound_\w+|speech_\w+|multi_modal_projector|mm_projector)\."
)
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out)\.weight$")


def by_part(model: nn.Module, beside: Iterable[tuple[str, Tensor]] = ()) -> Mapping[str, int]:
    """Bytes of the parameters by the parts of EngineFacts.weight_bytes.

    Args:
        beside: buffers that a quantisation keeps outside the parameters, by name.
    """
    tensors = {**dict(model.named_parameters()), **dict(beside)}
    headless = not any(_HEAD.search(name) for name in tensors)  # the embedding is the head as well
    sums = dict.fromkeys(("experts", "embedding", "encoders", "other"), 0)
    for name, tensor in tensors.items():
        part = "experts" if _EXPERT.search(name) else "encoders" if _ENCODER.search(name) else "other"
        if part == "other" and (_TABLE.search(name) or (_EMBEDDING.search(name) and not headless)):
            part = "embedding"
        sums[part] += tensor.numel() * tensor.element_size()
    return sums
