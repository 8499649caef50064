"""What differs between the imitated versions, as data."""

from __future__ import annotations

from dataclasses import dataclass, replace

_OLD_BACKENDS = ("CUTLASS", "CUTEDSL", "WIDEEP", "TRTLLM", "DEEPGEMM", "VANILLA", "TRITON")
_TENSORRT_ONLY = frozenset(
    {
        "build_config",
        "quant_config",
        "calib_config",
        "enable_build_cache",
        "extended_runtime_perf_knob_config",
        "batching_type",
        "normalize_log_probs",
        "enable_tqdm",
        "workspace",
        "fast_build",
        "embedding_parallel_mode",
        "fail_fast_on_attention_window_too_large",
    }
)


@dataclass(frozen=True)
class Version:
    """One release.

    Attributes:
        name: what importlib.metadata and __version__ say.
        column: its place, 0 to 2, in the tables of args.py and sampling.py.
        moe_backends: the literals of MoeConfig.backend.
        moe_default: MoeConfig.backend's default.
        tensorrt_only: keywords refused with words of their own, because the TensorRT backend has them.
        prompt_logprobs: "top_k" (actual token only by luck), "input_token" (issue #12447) or "next_token".
        quant_methods: values of quantization_config.quant_method it reads.
        wraps_experts: whether `experts` is a ConfigurableMoE around the class that computes.
        cutlass: name of the class that computes unquantised experts.
        substitutes: whether a backend that cannot serve bfloat16 is replaced (else its own class is reported).
        has_abort: whether pending results can be aborted.
        has_profile: whether start_profile and stop_profile exist.
        generate_extra: keywords generate() and generate_async() gained later.
        over_long: the class of the error for a prompt that is too long.
        moe_extra: fields that MoeConfig gained.
        layout: "usual" for model.layers[].mlp.experts, "wrapped" for a model that lies elsewhere.
        reports_degraded: whether a layer's experts say why another backend than the requested one runs.
        window: "inclusive", or "exclusive" where the stop of TLLM_PROFILE_START_STOP is tested before the start.
        manager: the class of the manager of the key-value cache.
    """

    name: str
    column: int
    moe_backends: tuple[str, ...]
    moe_default: str
    tensorrt_only: frozenset[str]
    prompt_logprobs: str
    quant_methods: frozenset[str]
    wraps_experts: bool
    cutlass: str
    substitutes: bool
    has_abort: bool
    has_profile: bool
    generate_extra: frozenset[str]
    over_long: str = "ValueError"
    moe_extra: tuple[str, ...] = ()
    layout: str = "usual"
    reports_degraded: bool = False
    window: str = "inclusive"
    manager: str = "KVCacheManager"


_NEWEST_BACKENDS = (
    *("AUTO", "CUTLASS", "CUTEDSL", "TRTLLM", "DEEPGEMM", "DENSEGEMM", "VANILLA", "TRITON", "MARLIN"),
    *("MEGAMOE_DEEPGEMM", "MEGAMOE_CUTEDSL"),
)
_1_2_0 = Version(
    name="1.2.0",
    column=0,
    moe_backends=_OLD_BACKENDS,
    moe_default="CUTLASS",
    tensorrt_only=_TENSORRT_ONLY,
    prompt_logprobs="top_k",
    quant_methods=frozenset({"fp8", "mxfp4"}),
    wraps_experts=False,
    cutlass="CutlassFusedMoE",
    substitutes=False,
    has_abort=False,
    has_profile=False,
    generate_extra=frozenset(),
)
_1_3_0RC8 = replace(
    _1_2_0,
    name="1.3.0rc8",
    column=1,
    moe_backends=("AUTO", *_OLD_BACKENDS),
    moe_default="AUTO",
    prompt_logprobs="input_token",
    quant_methods=frozenset({"fp8", "mxfp4", "compressed-tensors"}),
    wraps_experts=True,
    has_abort=True,
)
_1_3_0RC20 = replace(
    _1_3_0RC8,
    name="1.3.0rc20",
    moe_backends=(*_1_3_0RC8.moe_backends, "DENSEGEMM", "MARLIN", "MEGAMOE_DEEPGEMM"),
    prompt_logprobs="next_token",
    has_profile=True,
    generate_extra=frozenset({"priority"}),
    window="exclusive",
)
_1_4_0RC1 = replace(
    _1_3_0RC20,
    name="1.4.0rc1",
    column=2,
    moe_backends=_NEWEST_BACKENDS,
    tensorrt_only=frozenset(),
    quant_methods=frozenset({"fp8", "mxfp4", "compressed-tensors", "modelopt", "mxfp8", "nvfp4"}),
    cutlass="TrtllmCutlassFusedMoeImpl",
    substitutes=True,
    over_long="RequestError",
    reports_degraded=True,
    manager="KVCacheManagerV2",
)
_1_4_0RC4 = replace(
    _1_4_0RC1,
    name="1.4.0rc4",
    moe_backends=(*_NEWEST_BACKENDS, "CUTEDSL_FC12"),
    moe_extra=("tactic", "megamoe_fuse_shared_expert"),
    layout="wrapped",
)
VERSIONS = {
    version.name: version
    for version in (replace(_1_2_0, name="1.1.0"), _1_2_0, _1_3_0RC8, _1_3_0RC20, _1_4_0RC1, _1_4_0RC4)
}

# backends whose class is not the CUTLASS one for unquantised weights, and those that are never wrapped
OWN_CLASS = {"VANILLA": "VanillaMoE", "TRITON": "TritonFusedMoE", "WIDEEP": "WideEPMoE", "DEEPGEMM": "DeepGemmFusedMoE"}
NEVER_WRAPPED = frozenset({"VANILLA", "TRITON", "WIDEEP"})


def experts_class(version: Version, backend: str) -> tuple[str, bool]:
    """Name of the class that computes unquantised experts, and whether a ConfigurableMoE is around it."""
    name = OWN_CLASS.get(backend, version.cutlass)
    if version.substitutes and backend == "DEEPGEMM":
        name = version.cutlass
    return name, version.wraps_experts and backend not in NEVER_WRAPPED
