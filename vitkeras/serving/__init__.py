"""A run's model as a SavedModel that TF Serving takes: image bytes in, class names out."""

from vitkeras.serving.exporting import TOP, export, next_version

__all__ = ["TOP", "export", "next_version"]
