"""Quantise-dequantise arithmetic: what a precision costs in quality, on hardware that cannot run it.

A value is rounded to the format and multiplied back by its scales; products and sums are those of the model's own
dtype. That is the quality of the format, never its speed.
"""
