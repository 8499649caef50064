"""Names of quantisations."""

QUANTIZATION_METHODS = [
    *("awq", "fp8", "modelopt", "modelopt_fp4", "modelopt_mixed", "gptq", "compressed-tensors", "bitsandbytes"),
    *("experts_int8", "mxfp4", "online", "fp8_per_tensor", "fp8_per_block", "int8_per_channel_weight_only", "mxfp8"),
]
