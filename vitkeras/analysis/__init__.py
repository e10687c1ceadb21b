"""Arrays behind the paper's figures of a trained ViT: float32 NumPy, nothing is drawn here."""

from vitkeras.analysis.arrays import (
    Components,
    cosine_similarities,
    mean_distances,
    principal_components,
    rollout,
    uniform_distance,
)
from vitkeras.analysis.looking import (
    attention_distances,
    attention_rollout,
    attention_scores,
    class_evidence,
    first_filters,
    head_maps,
    position_similarity,
    token_norms,
)
from vitkeras.analysis.parts import Layout, layout

__all__ = [
    "Components",
    "Layout",
    "attention_distances",
    "attention_rollout",
    "attention_scores",
    "class_evidence",
    "cosine_similarities",
    "first_filters",
    "head_maps",
    "layout",
    "mean_distances",
    "position_similarity",
    "principal_components",
    "rollout",
    "token_norms",
    "uniform_distance",
]
