"""The type of the key-value cache by names of kernels, as engines spell them."""

from __future__ import annotations

import pytest

from moe_eval.traces import observed_cache

WRITES = "_ZN4vllm30reshape_and_cache_flash_kernelI13__nv_bfloat16{}LNS_18Fp8KVCacheDataTypeE{}EEEvPKT_S4_PT0_"
FLASH = "void cutlass::device_kernel<flash::FlashAttnFwdSm90<flash::CollectiveMainloopFwdSm90<2, {}, float>>>"


@pytest.mark.parametrize(
    ("names", "cache"),
    [
        ([WRITES.format("S1_", 0)], "unquantised"),
        ([WRITES.format("h", 1)], "fp8"),
        (["void vllm::reshape_and_cache_flash_kernel<c10::Half, unsigned char, (vllm::Fp8KVCacheDataType)2>"], "fp8"),
        # what writes the cache counts more than what reads it
        ([WRITES.format("h", 1), FLASH.format("cutlass::bfloat16_t")], "fp8"),
        ([FLASH.format("cutlass::float_e4m3_t")], "fp8"),
        ([FLASH.format("cutlass::bfloat16_t")], "unquantised"),
        (["void flashinfer::BatchDecodeWithPagedKVCacheKernel<__nv_bfloat16, __nv_fp8_e4m3>"], "fp8"),
        (["fmhaSm100fKernel_QkvBfloat16OBfloat16H128PagedKvCausal"], "unquantised"),
        # what comes out is quantised for the next layer, and the cache is not
        (["fmhaSm100fKernel_QkvBfloat16OE4m3H128PagedKvCausal"], "unquantised"),
        (["fmhaSm100fKernel_QkvE4m3OBfloat16H128PagedKvCausal"], "fp8"),
        (["xqa_kernel_dt_bf16_d_128_beam_1_kvt_e4m3_pagedKV_64_nqpkv_8_m_8_sm_90"], "fp8"),
        (["xqa_kernel_dt_fp16_d_128_beam_1_kvt_fp16_pagedKV_64_nqpkv_8_m_8_sm_90"], "unquantised"),
        # Triton's names have no types
        (["kernel_unified_attention_2d", "reshape_and_cache_kernel_flash"], None),
        # quantised products of experts say nothing of attention
        (["void cutlass::GemmUniversal<cutlass::float_e4m3_t>", "per_token_group_quant_8bit_kernel"], None),
        ([FLASH.format("cutlass::bfloat16_t"), FLASH.format("cutlass::float_e4m3_t")], None),
        ([], None),
    ],
)
def test_names_that_show_the_type_and_names_that_do_not(names: list[str], cache: str | None) -> None:
    assert observed_cache.observe(names) == cache
