"""Reads traces of GPU profilers into one table, and says where the time went."""
