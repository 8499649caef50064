"""The model types that are known, and what their code fixes that config.json does not say."""

from __future__ import annotations

from collections.abc import Callable

from moe_eval.checkpoint.contents import Json
from moe_eval.checkpoint.geometry import attention, states
from moe_eval.checkpoint.geometry.mixers import Mixer
from moe_eval.frozen import frozen

# of config.json, the kind of a layer and its index
MixerReader = Callable[[Json, str, int], Mixer]

_SLIDING, _FULL, _LINEAR = "sliding_attention", "full_attention", "linear_attention"


@frozen
class Family:
    """What the code of one architecture fixes.

    Attributes:
        mixer: reads a layer that is no linear attention.
        linear: reads a layer that is.
        pattern: of layers, repeated, where config.json lists none. Empty for full attention, and for windows in every
            layer where config.json states one.
        matrices: of an MLP: gate, up and down projection, or without a gate 2.
        shared: how many shared experts there are beside those that a router chooses from, or the setting that says it.
        shared_width: the setting with a shared expert's width. Empty for the width of the others.
        has_shared_gate: a gate of one output weighs the shared expert.
        leads_dense: the setting first_k_dense_replace says how many layers at first have no router.
        has_dense_beside: a layer with a router has a dense MLP as well.
        is_tied: the head is the embedding, where config.json does not say.
    """

    mixer: MixerReader = attention.full
    linear: MixerReader | None = None
    pattern: tuple[str, ...] = ()
    matrices: int = 3
    shared: int | str = 0
    shared_width: str = ""
    has_shared_gate: bool = False
    leads_dense: bool = False
    has_dense_beside: bool = False
    is_tied: bool = False


_PLAIN = Family()
_QWEN2 = Family(shared=1, shared_width="shared_expert_intermediate_size", has_shared_gate=True)
_GLM4 = Family(shared="n_shared_experts", leads_dense=True)
_LATENT = Family(mixer=attention.latent, shared="n_shared_experts", leads_dense=True)
_DELTA = Family(
    mixer=attention.gated,
    linear=states.delta,
    pattern=(_LINEAR, _LINEAR, _LINEAR, _FULL),
    shared=1,
    shared_width="shared_expert_intermediate_size",
    has_shared_gate=True,
)
_LLAMA4 = Family(mixer=attention.full, pattern=("chunked_attention",) * 3 + (_FULL,), shared=1)
_GEMMA4 = Family(mixer=attention.gemma, pattern=(_SLIDING,) * 5 + (_FULL,), has_dense_beside=True, is_tied=True)
_MINIMAX_M3 = Family(mixer=attention.blocks, shared=1, shared_width="shared_intermediate_size")

FAMILIES: dict[str, Family] = {
    "axk1": _LATENT,
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "deepseek_v32": _LATENT,
    "deepseek_v4": Family(mixer=attention.compressed, shared="n_shared_experts"),
    "dots1": _GLM4,
    "flex_olmo": _PLAIN,
    "gemma4": _GEMMA4,
    "gemma4_text": _GEMMA4,
    "glm4_moe": _GLM4,
    "glm4_moe_lite": _LATENT,
    "glm_moe_dsa": _LATENT,
    "gpt_oss": Family(pattern=(_SLIDING, _FULL)),
    "granitemoe": _PLAIN,
    "kimi_k2": _LATENT,
    "llama4": _LLAMA4,
    "llama4_text": _LLAMA4,
    "minimax_m2": _PLAIN,
    "minimax_m3_vl": _MINIMAX_M3,
    "minimax_m3_vl_text": _MINIMAX_M3,
    "mixtral": _PLAIN,
    "nemotron_h": Family(linear=states.mamba, matrices=2, shared=1, shared_width="moe_shared_expert_intermediate_size"),
    "olmoe": _PLAIN,
    "phimoe": _PLAIN,
    "qwen2_moe": _QWEN2,
    "qwen3_5_moe": _DELTA,
    "qwen3_5_moe_text": _DELTA,
    "qwen3_moe": _PLAIN,
    "qwen3_next": _DELTA,
    "qwen3_vl_moe": _PLAIN,
    "qwen3_vl_moe_text": _PLAIN,
}
