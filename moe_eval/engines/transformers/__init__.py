"""The Transformers engine: any checkpoint that Transformers loads, on a CPU or one GPU."""
