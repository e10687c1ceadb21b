"""Exports as SavedModels for TF Serving, from image bytes to class names, and a client."""

from vitkeras.serving.export import export_saved_model, next_version

__all__ = ["export_saved_model", "next_version"]
