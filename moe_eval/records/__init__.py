"""The records: what was measured, written to disk and read back."""
