"""Reads the files of profilers into one kernel table."""
