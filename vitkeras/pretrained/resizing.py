"""Resizing of position embeddings and patch projections."""

import functools

import numpy as np

from vitkeras.arguments import check_choice
from vitkeras.errors import InputError

#: zoom: bilinear with aligned corners, as the paper's authors fine-tune (scipy.ndimage.zoom, order
#: 1). bilinear: half-pixel centers, no antialias (timm on .npz files). bicubic: a = -0.75,
#: half-pixel centers, no antialias (Hugging Face ViT and DINOv2). bicubic_antialias: a = -0.5 with
#: antialias when shrinking (timm on its own files, Hugging Face DINOv2 with registers).
RESIZES = ("zoom", "bilinear", "bicubic", "bicubic_antialias")


def resize_positions(
    embedding: np.ndarray,
    old_grid: tuple[int, int],
    new_grid: tuple[int, int],
    num_prefix_tokens: int = 0,
    resize: str = "zoom",
) -> np.ndarray:
    """Interpolates position embeddings on the grid of patches.

    The embeddings of prefix tokens (class token, registers) are copied. Computed in float64. Equal
    grids give an equal embedding.

    Args:
        embedding: Array `(b, num_prefix_tokens + rows * columns, d)`.
        old_grid: `(rows, columns)` of the embedding.
        new_grid: `(rows, columns)` of the result.
        num_prefix_tokens: Number of embeddings before those of the patches.
        resize: One of `RESIZES`. The convention of the weights' origin reproduces its numbers.
    Returns:
        Array `(b, num_prefix_tokens + new rows * new columns, d)` of the same dtype.
    Raises:
        InputError: (a ValueError) If the number of embeddings does not fit the old grid, or
            `resize` is unknown.
    Source: Dosovitskiy et al. 2021, section 3.2, and the authors' checkpoint code.
    """
    embedding = np.asarray(embedding)
    expected = num_prefix_tokens + old_grid[0] * old_grid[1]
    if embedding.ndim != 3 or embedding.shape[1] != expected:
        raise InputError(
            "`embedding` must have one row per prefix token and per cell of `old_grid`. "
            f"Received: shape {embedding.shape}, old_grid={tuple(old_grid)}, "
            f"num_prefix_tokens={num_prefix_tokens} ({expected} rows)."
        )
    if tuple(old_grid) == tuple(new_grid):
        return embedding.copy()
    prefix, patches = np.split(embedding, [num_prefix_tokens], axis=1)
    batch, width = len(embedding), embedding.shape[2]
    patches = patches.astype(np.float64).reshape(batch, *old_grid, width)
    rows, columns = (
        resize_matrix(old, new, resize) for old, new in zip(old_grid, new_grid, strict=True)
    )
    patches = np.einsum("yr,xc,brcd->byxd", rows, columns, patches, optimize=True)
    patches = patches.reshape(batch, -1, width).astype(embedding.dtype)
    return np.concatenate([prefix, patches], axis=1)


def resize_patch_kernel(kernel: np.ndarray, new_patch_size: int) -> np.ndarray:
    """Resamples a patch projection for another patch size.

    The projection of an enlarged patch equals that of the original patch; for smaller patches it is
    the least-squares approximation. Computed in float64.

    Args:
        kernel: Array `(p, p, c, d)`.
        new_patch_size: Side q of the new patches, in pixels.
    Returns:
        Array `(q, q, c, d)` of the same dtype.
    Source: Beyer et al. 2023, "FlexiViT", section 3.4, for the bilinear resize of this package.
    """
    kernel = np.asarray(kernel)
    side, _, channels, width = kernel.shape
    if side == new_patch_size:
        return kernel.copy()
    matrix = resize_matrix(side, new_patch_size, "bilinear")  # (q, p)
    # The pseudoinverse of a Kronecker product is the product of the pseudoinverses.
    inverse = np.linalg.pinv(matrix.T)  # (q, p)
    resized = np.einsum("ya,xb,abcd->yxcd", inverse, inverse, kernel.astype(np.float64))
    return resized.reshape(new_patch_size, new_patch_size, channels, width).astype(kernel.dtype)


def check_resize(resize: str) -> None:
    """Raises an `InputError` unless `resize` is one of `RESIZES`."""
    check_choice("resize", resize, RESIZES)


def resize_matrix(old: int, new: int, resize: str) -> np.ndarray:
    """Returns the matrix `(new, old)` that interpolates along one axis; rows sum to 1."""
    check_resize(resize)
    if resize == "zoom":
        centers = np.arange(new) * ((old - 1) / (new - 1) if new > 1 else 0.0)
    else:
        centers = (np.arange(new) + 0.5) * (old / new) - 0.5
    stretch = max(old / new, 1.0) if resize == "bicubic_antialias" else 1.0
    if resize in ("zoom", "bilinear"):
        centers, support = np.clip(centers, 0, old - 1), 1

        def kernel(distance):
            return np.maximum(1 - np.abs(distance), 0)
    else:
        support = 2
        kernel = functools.partial(_cubic, a=-0.5 if resize == "bicubic_antialias" else -0.75)
    span = int(np.ceil(support * stretch)) + 1
    taps = np.floor(centers).astype(int)[:, None] + np.arange(-span, span + 1)  # (new, taps)
    values = kernel((taps - centers[:, None]) / stretch)
    if resize == "bicubic_antialias":
        values = np.where((taps >= 0) & (taps < old), values, 0)  # taps outside are ignored
        values = values / values.sum(axis=1, keepdims=True)
    weights = np.zeros((new, old))
    np.add.at(weights, (np.arange(new)[:, None], np.clip(taps, 0, old - 1)), values)
    return weights


def _cubic(distance, a):
    """Returns the weights of Keys's cubic convolution."""
    x = np.abs(distance)
    inner = ((a + 2) * x - (a + 3)) * x * x + 1
    outer = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, inner, np.where(x < 2, outer, 0))
