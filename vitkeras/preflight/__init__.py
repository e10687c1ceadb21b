"""Checks before a run: data, input pipeline, memory, and compilation for TPUs."""
