"""Evaluation of models on complete splits."""
