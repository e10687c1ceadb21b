"""Resizing of position embeddings to another grid of patches."""

import numpy as np


def resize_positions(embedding, old_grid, new_grid, num_prefix_tokens=0):
    """Interpolates position embeddings by their places in the image.

    Bilinear with aligned corners, as the paper's authors do it when fine-tuning at another
    resolution (scipy.ndimage.zoom with order 1). Prefix tokens, such as the class token, have no
    place in the image and are copied. Computed in float64.

    Args:
        embedding: Array `(1, prefix + rows*columns, d)`.
        old_grid: `(rows, columns)` that it belongs to.
        new_grid: `(rows, columns)` wanted.
        num_prefix_tokens: Tokens in front that stand for no patch.
    Returns:
        Array `(1, prefix + new rows * new columns, d)` of the same dtype.
    Raises:
        ValueError: If the number of embeddings is not that of the prefix and the old grid.
    Source: Dosovitskiy et al. 2021, section 3.2, and the authors' checkpoint code.
    """
    embedding = np.asarray(embedding)
    expected = num_prefix_tokens + old_grid[0] * old_grid[1]
    if embedding.shape[1] != expected:
        raise ValueError(
            "The position embedding must have one row for each prefix token and each place of its "
            f"grid. Received: shape {embedding.shape}, grid {tuple(old_grid)}, "
            f"{num_prefix_tokens} prefix tokens (so {expected} rows)."
        )
    if tuple(old_grid) == tuple(new_grid):
        return embedding.copy()
    prefix, places = np.split(embedding, [num_prefix_tokens], axis=1)
    places = places[0].astype(np.float64).reshape(*old_grid, -1)  # (rows, columns, d)
    for axis in (0, 1):
        weights = _aligned_corners(old_grid[axis], new_grid[axis])  # (new, old)
        places = np.moveaxis(np.tensordot(weights, places, axes=(1, axis)), 0, axis)
    places = places.reshape(1, -1, embedding.shape[2]).astype(embedding.dtype)
    return np.concatenate([prefix, places], axis=1)


def _aligned_corners(old, new):
    """Returns the matrix `(new, old)` of linear interpolation with the end points kept."""
    source = np.arange(new) * ((old - 1) / (new - 1) if new > 1 else 0.0)
    low = np.minimum(np.floor(source).astype(int), old - 1)
    high = np.minimum(low + 1, old - 1)
    share = source - low
    weights = np.zeros((new, old))
    np.add.at(weights, (np.arange(new), low), 1 - share)
    np.add.at(weights, (np.arange(new), high), share)
    return weights
