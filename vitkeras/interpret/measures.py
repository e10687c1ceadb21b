"""Measures of filters, position embeddings and attention scores, as functions of arrays."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from vitkeras.errors import InputError

TINY = np.finfo("float32").tiny


class PrincipalComponents(NamedTuple):
    """Principal components of m filters, in order of decreasing variance.

    `mean + np.tensordot(coordinates, components, 1)` restores the filters.

    Attributes:
        mean: Mean of the filters, `(p, p, c)`.
        components: Orthonormal components, `(r, p, p, c)`; r is the smaller of m and p*p*c.
        coordinates: Coordinates of each filter, `(m, r)`.
        explained_variance_ratio: Fraction of the variance along each component, `(r,)`.
    """

    mean: np.ndarray
    components: np.ndarray
    coordinates: np.ndarray
    explained_variance_ratio: np.ndarray


def principal_components(filters: ArrayLike) -> PrincipalComponents:
    """Returns the principal components of filters.

    The sign of a component is arbitrary; here its entry of largest magnitude is positive.

    Args:
        filters: `(m, p, p, c)`, such as from `first_filters`.
    Source: Dosovitskiy et al. 2021, figure 7, left, which shows the first 28.
    """
    filters = np.asarray(filters, "float64")
    mean = filters.mean(axis=0)
    centered = (filters - mean).reshape(len(filters), -1)  # (m, p*p*c)
    left, singular_values, rows = np.linalg.svd(centered, full_matrices=False)
    largest = np.abs(rows).argmax(axis=1)
    signs = np.sign(rows[np.arange(len(rows)), largest])
    variances = singular_values**2
    return PrincipalComponents(
        mean.astype("float32"),
        (rows * signs[:, None]).reshape(-1, *mean.shape).astype("float32"),
        (left * singular_values * signs).astype("float32"),
        (variances / max(variances.sum(), TINY)).astype("float32"),
    )


def cosine_similarities(vectors: ArrayLike) -> np.ndarray:
    """Returns the cosine similarity of each pair of vectors `(n, d)`, `(n, n)`."""
    vectors = np.asarray(vectors, "float64")
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    normalized = vectors / np.maximum(norms, TINY)
    return (normalized @ normalized.T).astype("float32")


def mean_distances(scores: ArrayLike, grid: tuple[int, int], stride: int) -> np.ndarray:
    """Returns the mean attention distance: between a query patch and the patches it attends to.

    Class token and registers have no position and are left out, as queries and as keys. The
    distances of a query are weighted by its scores for patches, normalized to sum to 1. A query
    with no attention to patches has distance 0.

    Args:
        scores: Attention scores `(b, k, t, t)`; the patches are the last tokens.
        grid: `(rows, columns)` of the patches.
        stride: Pixels between two patches.
    Returns:
        `(b, k)`, in pixels, the mean over the queries.
    Source: Dosovitskiy et al. 2021, figure 7, right, and figure 11.
    """
    positions = np.mgrid[: grid[0], : grid[1]].reshape(2, -1).T * float(stride)  # (n, 2)
    distances = np.linalg.norm(positions[:, None] - positions, axis=-1)  # (n, n)
    n = len(positions)
    patch_scores = np.asarray(scores, "float32")[..., -n:, -n:]
    totals = np.maximum(patch_scores.sum(axis=-1), TINY)  # (b, k, n)
    weighted = np.einsum("bkqn,qn->bkq", patch_scores, distances.astype("float32"))
    return (weighted / totals).mean(axis=-1)


def uniform_distance(grid: tuple[int, int], stride: int) -> np.float32:
    """Returns `mean_distances` of uniform attention, in pixels."""
    n = grid[0] * grid[1]
    return mean_distances(np.ones((1, 1, n, n), "float32"), grid, stride)[0, 0]


def rollout(scores: Iterable[ArrayLike]) -> np.ndarray:
    """Returns the attention rollout: attention through all blocks and residual connections.

    The matrix of a block is the mean of two: the attention scores averaged over the heads, and the
    identity for the residual connection. The rollout is the product of these matrices.

    Args:
        scores: Attention scores `(b, k, t, t)` of each block, in order.
    Returns:
        `(b, t, t)`: the weight of each input token (column) in each output token (row). Rows sum
        to 1.
    Raises:
        InputError: (a ValueError) If there are no blocks.
    Source: Abnar and Zuidema 2020, "Quantifying Attention Flow in Transformers"; Dosovitskiy et
        al. 2021, appendix D.8.
    """
    product = None
    for block_scores in scores:
        matrix = np.asarray(block_scores, "float32").mean(axis=1) / 2  # (b, t, t)
        matrix += np.eye(matrix.shape[-1], dtype="float32") / 2
        product = matrix if product is None else matrix @ product
    if product is None:
        raise InputError("`scores` must have at least one block. Received: none.")
    return product
