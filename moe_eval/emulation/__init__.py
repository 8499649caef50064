"""Quantise-dequantise arithmetic: the quality loss of a precision, on hardware that cannot run it.

A value is rounded to the format and multiplied back by its scales. Products and sums are those of the model's own
dtype. This gives the quality of the format, never its speed.
"""

PRECISIONS = ("fp8", "fp8_block", "nvfp4")
