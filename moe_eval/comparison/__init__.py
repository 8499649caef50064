"""Recorded arms side by side: records in, verdict out."""
