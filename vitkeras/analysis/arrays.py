"""What is computed of filters, positions and attention once they are arrays; no model here.

Letters in shapes as in `layers.py`.
"""

from typing import NamedTuple

import numpy as np

from vitkeras.errors import InputError

TINY = np.finfo("float32").tiny


class Components(NamedTuple):
    """Principal components of filters, by falling variance.

    `mean + np.tensordot(coordinates, components, 1)` gives the filters again.
    """

    #: Of all filters, `(p, p, c)`.
    mean: np.ndarray
    #: Of unit length and at right angles, `(r, p, p, c)`, r the smaller of m and p * p * c.
    components: np.ndarray
    #: Of each filter, `(m, r)`.
    coordinates: np.ndarray
    #: Share of the variance along each, `(r,)`.
    explained: np.ndarray


def principal_components(filters):
    """Finds the directions along which filters differ most.

    The sign of a component is open; here its largest entry is positive.

    Args:
        filters: `(m, p, p, c)`, such as `first_filters` gives.
    Returns:
        `Components`, of which the paper shows the first 28.
    Source: Dosovitskiy et al. 2021, figure 7, left.
    """
    filters = np.asarray(filters, "float64")
    mean = filters.mean(axis=0)
    flat = (filters - mean).reshape(len(filters), -1)  # (m, p*p*c)
    left, lengths, rows = np.linalg.svd(flat, full_matrices=False)
    largest = np.abs(rows).argmax(axis=1)
    signs = np.sign(rows[np.arange(len(rows)), largest])
    explained = lengths**2 / max((lengths**2).sum(), TINY)
    return Components(
        mean.astype("float32"),
        (rows * signs[:, None]).reshape(-1, *mean.shape).astype("float32"),
        (left * lengths * signs).astype("float32"),
        explained.astype("float32"),
    )


def cosine_similarities(vectors):
    """Returns the cosine of the angle between each two of `(n, d)` vectors, `(n, n)`."""
    vectors = np.asarray(vectors, "float64")
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = vectors / np.maximum(lengths, TINY)
    return (units @ units.T).astype("float32")


def mean_distances(scores, grid, stride):
    """Returns how far a head looks: the mean distance between a query and the keys it attends to.

    Tokens that stand for no patch have no place: their queries and keys are left out, and what a
    query gives to patches is taken for the whole. A query that gives them nothing counts as 0.

    Args:
        scores: Attention `(b, k, t, t)`; the patches are the last tokens.
        grid: `(rows, columns)` of the patches.
        stride: Pixels between two patches.
    Returns:
        `(b, k)`, in pixels, a mean over the queries.
    Source: Dosovitskiy et al. 2021, figure 7, right, and figure 11.
    """
    places = np.mgrid[: grid[0], : grid[1]].reshape(2, -1).T * float(stride)  # (n, 2)
    apart = np.linalg.norm(places[:, None] - places, axis=-1).astype("float32")  # (n, n)
    patches = np.asarray(scores, "float32")[..., -len(places) :, -len(places) :]
    totals = np.maximum(patches.sum(axis=-1), TINY)  # (b, k, n)
    return (np.einsum("bkqn,qn->bkq", patches, apart) / totals).mean(axis=-1)


def uniform_distance(grid, stride):
    """Returns `mean_distances` of a head that attends to all patches alike, in pixels."""
    places = grid[0] * grid[1]
    return mean_distances(np.ones((1, 1, places, places), "float32"), grid, stride)[0, 0]


def rollout(scores):
    """Follows attention from the last block to the first, through the residual connections.

    Of each block the mean over the heads counts one half, the token itself the other; these
    matrices are multiplied.

    Args:
        scores: Attention `(b, k, t, t)` of each block, the first one first.
    Returns:
        `(b, t, t)`: row i tells how much of each token of the input is in token i of the output.
        Rows sum to 1.
    Raises:
        InputError: (a ValueError) If there is no block.
    Source: Abnar and Zuidema 2020, "Quantifying Attention Flow in Transformers"; Dosovitskiy et
        al. 2021, appendix D.8.
    """
    whole = None
    for block in scores:
        mixed = np.asarray(block, "float32").mean(axis=1) / 2  # (b, t, t)
        mixed += np.eye(mixed.shape[-1], dtype="float32") / 2
        whole = mixed if whole is None else mixed @ whole
    if whole is None:
        raise InputError("`rollout` needs the attention of at least one block. Received: none.")
    return whole
