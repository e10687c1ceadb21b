"""Resizing of what belongs to places in the image: position embeddings and patch projections."""

import functools

import numpy as np

from vitkeras.errors import InputError

#: zoom: bilinear with aligned corners, as the paper's authors fine-tune (scipy.ndimage.zoom, order
#: 1). bilinear: half-pixel centres, no antialias (timm on .npz files). bicubic: a = -0.75,
#: half-pixel centres, no antialias (Hugging Face ViT and DINOv2). bicubic_antialias: a = -0.5 and a
#: wider filter when shrinking (timm on its own files, Hugging Face DINOv2 with registers).
RESIZES = ("zoom", "bilinear", "bicubic", "bicubic_antialias")


def resize_positions(embedding, old_grid, new_grid, num_prefix_tokens=0, resize="zoom"):
    """Interpolates position embeddings by their places in the image.

    Prefix tokens, such as the class token and registers, have no place in the image and are
    copied. Computed in float64. The same grid gives the same embedding.

    Args:
        embedding: Array `(b, prefix + rows*columns, d)`.
        old_grid: `(rows, columns)` that it belongs to.
        new_grid: `(rows, columns)` wanted.
        num_prefix_tokens: Tokens in front that stand for no patch.
        resize: One of `RESIZES`; what the weights' origin uses reproduces its numbers.
    Returns:
        Array `(b, prefix + new rows * new columns, d)` of the same dtype.
    Raises:
        InputError: (a ValueError) If the number of embeddings is not that of the prefix and the old
            grid, or `resize` is unknown.
    Source: Dosovitskiy et al. 2021, section 3.2, and the authors' checkpoint code.
    """
    embedding = np.asarray(embedding)
    expected = num_prefix_tokens + old_grid[0] * old_grid[1]
    if embedding.ndim != 3 or embedding.shape[1] != expected:
        raise InputError(
            "The position embedding must have one row for each prefix token and each place of its "
            f"grid. Received: shape {embedding.shape}, grid {tuple(old_grid)}, "
            f"{num_prefix_tokens} prefix tokens (so {expected} rows)."
        )
    if tuple(old_grid) == tuple(new_grid):
        return embedding.copy()
    prefix, places = np.split(embedding, [num_prefix_tokens], axis=1)
    batch, width = len(embedding), embedding.shape[2]
    places = places.astype(np.float64).reshape(batch, *old_grid, width)
    rows, columns = (
        resize_matrix(old, new, resize) for old, new in zip(old_grid, new_grid, strict=True)
    )
    places = np.einsum("yr,xc,brcd->byxd", rows, columns, places, optimize=True)
    places = places.reshape(batch, -1, width).astype(embedding.dtype)
    return np.concatenate([prefix, places], axis=1)


def resize_patches(kernel, new_patch_size):
    """Resamples a patch projection for another patch size.

    Chosen so that the projection of an enlarged patch is that of the patch; where patches shrink,
    as near to that as least squares can come. Computed in float64.

    Args:
        kernel: Array `(p, p, c, d)`.
        new_patch_size: Side of the new patches q, in pixels.
    Returns:
        Array `(q, q, c, d)` of the same dtype.
    Source: Beyer et al. 2023, "FlexiViT", section 3.4; bilinear as images are resized here.
    """
    kernel = np.asarray(kernel)
    side, _, channels, width = kernel.shape
    if side == new_patch_size:
        return kernel.copy()
    line = resize_matrix(side, new_patch_size, "bilinear")  # (q, p)
    # The pseudo-inverse of a Kronecker product is that of its factors.
    inverse = np.linalg.pinv(line.T)  # (q, p)
    resized = np.einsum("ya,xb,abcd->yxcd", inverse, inverse, kernel.astype(np.float64))
    return resized.reshape(new_patch_size, new_patch_size, channels, width).astype(kernel.dtype)


def check_resize(resize):
    """Raises an InputError if there is no such convention."""
    if resize not in RESIZES:
        raise InputError(f"`resize` must be one of {RESIZES}. Received: resize={resize!r}.")


def resize_matrix(old, new, resize):
    """Returns the matrix `(new, old)` that interpolates one axis; its rows sum to 1."""
    check_resize(resize)
    if resize == "zoom":
        at = np.arange(new) * ((old - 1) / (new - 1) if new > 1 else 0.0)
    else:
        at = (np.arange(new) + 0.5) * (old / new) - 0.5
    stretch = max(old / new, 1.0) if resize == "bicubic_antialias" else 1.0
    if resize in ("zoom", "bilinear"):
        at, reach = np.clip(at, 0, old - 1), 1

        def weigh(distance):
            return np.maximum(1 - np.abs(distance), 0)
    else:
        reach = 2
        weigh = functools.partial(_cubic, a=-0.5 if resize == "bicubic_antialias" else -0.75)
    span = int(np.ceil(reach * stretch)) + 1
    near = np.floor(at).astype(int)[:, None] + np.arange(-span, span + 1)  # (new, taps)
    share = weigh((near - at[:, None]) / stretch)
    if resize == "bicubic_antialias":
        share = np.where((near >= 0) & (near < old), share, 0)  # it leaves out what is outside
        share = share / share.sum(axis=1, keepdims=True)
    weights = np.zeros((new, old))
    np.add.at(weights, (np.arange(new)[:, None], np.clip(near, 0, old - 1)), share)
    return weights


def _cubic(distance, a):
    """Returns the weight of Keys's cubic convolution."""
    x = np.abs(distance)
    inner = ((a + 2) * x - (a + 3)) * x * x + 1
    outer = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, inner, np.where(x < 2, outer, 0))
