"""Runs a plan: every arm in a process of its own, every result on disk as it comes, resumable at any point."""
