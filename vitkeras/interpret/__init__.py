"""Interpretation of trained ViTs: attention maps, gradients and filters as float32 NumPy arrays.

`figures` plots these arrays, `report` makes an HTML page of them, `tensorboard` logs them.
"""

from vitkeras.interpret.attention_maps import (
    attention_distances,
    attention_rollout,
    attention_scores,
    class_evidence,
    first_filters,
    head_maps,
    position_similarity,
    token_norms,
)
from vitkeras.interpret.block_runner import TokenLayout, token_layout
from vitkeras.interpret.measures import (
    PrincipalComponents,
    cosine_similarities,
    mean_distances,
    principal_components,
    rollout,
    uniform_distance,
)

__all__ = [
    "PrincipalComponents",
    "TokenLayout",
    "attention_distances",
    "attention_rollout",
    "attention_scores",
    "class_evidence",
    "cosine_similarities",
    "first_filters",
    "head_maps",
    "mean_distances",
    "position_similarity",
    "principal_components",
    "rollout",
    "token_layout",
    "token_norms",
    "uniform_distance",
]
