"""What differs between the imitated versions, as data."""

from __future__ import annotations

from dataclasses import dataclass

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


VERSIONS = {
    version.name: version
    for version in (
        Version(
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
        ),
        Version(
            name="1.3.0rc8",
            column=1,
            moe_backends=("AUTO", *_OLD_BACKENDS),
            moe_default="AUTO",
            tensorrt_only=_TENSORRT_ONLY,
            prompt_logprobs="input_token",
            quant_methods=frozenset({"fp8", "mxfp4", "compressed-tensors"}),
            wraps_experts=True,
            cutlass="CutlassFusedMoE",
            substitutes=False,
            has_abort=True,
            has_profile=False,
            generate_extra=frozenset(),
        ),
        Version(
            name="1.4.0rc1",
            column=2,
            moe_backends=(
                "AUTO",
                "CUTLASS",
                "CUTEDSL",
                "TRTLLM",
                "DEEPGEMM",
                "DENSEGEMM",
                "VANILLA",
                "TRITON",
                "MARLIN",
                "MEGAMOE_DEEPGEMM",
                "MEGAMOE_CUTEDSL",
            ),
            moe_default="AUTO",
            tensorrt_only=frozenset(),
            prompt_logprobs="next_token",
            quant_methods=frozenset({"fp8", "mxfp4", "compressed-tensors", "modelopt", "mxfp8", "nvfp4"}),
            wraps_experts=True,
            cutlass="TrtllmCutlassFusedMoeImpl",
            substitutes=True,
            has_abort=True,
            has_profile=True,
            generate_extra=frozenset({"priority"}),
        ),
    )
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
