"""Figures of a trained ViT, from the arrays of `vitkeras.interpret`.

The colormap is viridis: its lightness increases with the value, so that it is readable in grayscale
and with color vision deficiency. Other colors are from the palette of Okabe and Ito.
"""

import numpy as np
from matplotlib import patheffects
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from vitkeras.interpret.block_runner import TokenLayout
from vitkeras.interpret.measures import PrincipalComponents
from vitkeras.io.figures import plain_text

#: Number of components in the paper's figure, and of position maps along each side of the grid.
NUM_COMPONENTS, MAX_MAPS = 28, 8
#: Colors of the contours around the patches with the highest values, by fraction of the patches.
CONTOURS = {0.25: "white", 0.1: "#f0e442", 0.03: "#d55e00"}
BLUE, LIGHT_BLUE, RED, GREEN = "#0072b2", "#7fb8d8", "#d55e00", "#009e73"


def plot_components(components: PrincipalComponents, model_name: str) -> Figure:
    """Plots the first principal components of RGB filters as image tiles.

    Args:
        components: Of filters with three channels.
        model_name: Part of the title.
    """
    tiles = components.components[:NUM_COMPONENTS]
    side = tiles.shape[1]
    figure = Figure(figsize=(7, 4.9), layout="constrained")
    axes = figure.subplots(4, 7)
    for index, axis in enumerate(axes.flat):
        if index < len(tiles):
            tile = tiles[index]
            axis.imshow(0.5 + tile / (2 * np.abs(tile).max()))  # 0 is gray
            axis.set_title(
                f"{index + 1}: {components.explained_variance_ratio[index]:.1%}", fontsize=8
            )
            _set_pixel_ticks(axis, side, side)
        else:
            axis.axis("off")
    figure.supxlabel("column (pixels)", fontsize=9)
    figure.supylabel("row (pixels)", fontsize=9)
    return _with_title(figure, f"Principal components of the first-layer filters, {model_name}")


def plot_position_similarity(similarity: np.ndarray, model_name: str) -> Figure:
    """Plots a grid of maps: the similarity of one patch's position embedding to those of all.

    Args:
        similarity: `(rows, columns, rows, columns)`.
        model_name: Part of the title.
    """
    shown = [spaced_indices(side) for side in similarity.shape[:2]]
    rows, columns = similarity.shape[2:]
    gap = max(1, max(rows, columns) // 12)
    height, width = (
        len(indices) * (side + gap) - gap
        for indices, side in zip(shown, (rows, columns), strict=True)
    )
    canvas = np.full((height, width), np.nan, "float32")
    for i, row in enumerate(shown[0]):
        for j, column in enumerate(shown[1]):
            y, x = i * (rows + gap), j * (columns + gap)
            canvas[y : y + rows, x : x + columns] = similarity[row, column]
    figure = Figure(figsize=_figure_size(width, height, 6.5, right=1.0), layout="constrained")
    axis = figure.subplots()
    mappable = axis.imshow(canvas, "viridis", vmin=-1, vmax=1, interpolation="nearest")
    for set_ticks, indices, side in (
        (axis.set_yticks, shown[0], rows), (axis.set_xticks, shown[1], columns)
    ):  # fmt: skip
        centers = [i * (side + gap) + (side - 1) / 2 for i in range(len(indices))]
        set_ticks(centers, [str(index + 1) for index in indices])
    axis.set_xlabel("column of the patch")
    axis.set_ylabel("row of the patch")
    axis.spines[:].set_visible(False)
    _add_colorbar(axis, mappable, "cosine similarity (no unit)")
    return _with_title(figure, f"Similarity of position embeddings, {model_name}")


def spaced_indices(length: int) -> list[int]:
    """Returns at most `MAX_MAPS` evenly spaced indices of a sequence, including both ends."""
    indices = np.linspace(0, length - 1, min(length, MAX_MAPS))
    return np.unique(indices.round().astype(int)).tolist()


def plot_attention_distances(
    distances: np.ndarray, uniform: float, image_size: tuple[int, int], model_name: str
) -> Figure:
    """Plots the mean attention distance of each head against the depth of its block.

    Args:
        distances: `(b, blocks, k)`, in pixels.
        uniform: Distance of uniform attention, in pixels.
        image_size: `(height, width)` of the model's input.
        model_name: Part of the title.
    """
    mean, deviation = distances.mean(axis=0), distances.std(axis=0)  # (blocks, k)
    num_blocks, num_heads = mean.shape
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    offsets = np.linspace(-0.28, 0.28, num_heads) if num_heads > 1 else np.zeros(1)
    label = "head (bar: standard deviation over the images)" if len(distances) > 1 else "head"
    for block in range(num_blocks):
        order = np.argsort(mean[block])
        axis.errorbar(
            block + 1 + offsets, mean[block][order], deviation[block][order],
            fmt="o", markersize=3.5, linewidth=1, color=BLUE, ecolor=LIGHT_BLUE,
            label=label if block == 0 else None,
        )  # fmt: skip
    axis.axhline(uniform, color=RED, linestyle="--", label="uniform attention")
    axis.set_xlabel("depth (block)")
    axis.set_ylabel(f"mean attention distance (pixels of {image_size[0]}x{image_size[1]})")
    axis.set_xlim(0.4, num_blocks + 0.6)
    axis.set_ylim(0, 1.08 * max((mean + deviation).max(), uniform))
    axis.set_xticks(range(1, num_blocks + 1, 1 + num_blocks // 25))
    axis.grid(alpha=0.3)
    figure.legend(fontsize=9, loc="outside lower center", ncols=2)
    return _with_title(figure, f"Attention distance, {model_name}")


def plot_heatmap(
    image: np.ndarray, values: np.ndarray, title: str, label: str, model_name: str
) -> Figure:
    """Plots an image, a heatmap over it, and contours around the highest values.

    Args:
        image: uint8 `(h, w, 3)`.
        values: One value per patch, `(rows, columns)`.
        title: First part of the title.
        label: Label of the color bar, with the unit.
        model_name: Second part of the title.
    """
    figure, axes = _image_panels(image, 3)
    axes[0].imshow(image)
    _add_colorbar(axes[1], _draw_heatmap(axes[1], image, values), label)
    axes[2].imshow(image)
    _draw_contours(axes[2], image, values)
    return _with_title(figure, f"{title}, {model_name}")


def plot_head_maps(image: np.ndarray, maps: np.ndarray, title: str, model_name: str) -> Figure:
    """Plots the attention of each head over an image.

    Args:
        image: uint8 `(h, w, 3)`.
        maps: Attention to each patch, as a fraction, `(k, rows, columns)`.
        title: First part of the title.
        model_name: Second part of the title.
    """
    figure, axes = _image_panels(image, 1 + len(maps), width=2.3)
    axes[0].imshow(image)
    for index, (axis, values) in enumerate(zip(axes[1:], maps, strict=False)):
        mappable = _draw_heatmap(axis, image, 100 * values)
        axis.set_title(f"head {index + 1}: {values.sum():.0%} to patches", fontsize=8)
        _add_colorbar(axis, mappable, "%")
    for axis in axes[1 + len(maps) :]:
        axis.axis("off")
    return _with_title(figure, f"{title}, {model_name}")


def plot_token_norms(norms: np.ndarray, layout: TokenLayout, model_name: str) -> Figure:
    """Plots the norms of the tokens against depth.

    Args:
        norms: `(b, blocks + 1, t)`.
        layout: The token layout of the model.
        model_name: Part of the title.
    """
    depth = np.arange(norms.shape[1])
    patches = norms[..., layout.num_prefix_tokens :]  # (b, blocks + 1, n)
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    low, median, high = np.percentile(patches, (5, 50, 95), axis=(0, 2))
    axis.fill_between(
        depth, low, high, color=BLUE, alpha=0.25, label="patches, 5th to 95th percentile",
        linewidth=0,
    )  # fmt: skip
    axis.plot(depth, median, color=BLUE, label="patches, median")
    axis.plot(depth, patches.max(axis=(0, 2)), ":", color=BLUE, label="patches, maximum")
    if layout.class_token:
        axis.plot(depth, norms[..., 0].mean(axis=0), "--", color=RED, label="class token, mean")
    if layout.num_registers:
        registers = norms[..., int(layout.class_token) : layout.num_prefix_tokens]
        axis.plot(depth, registers.mean(axis=(0, 2)), "-.", color=GREEN, label="registers, mean")
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("depth (block; 0: input of the first block)")
    axis.set_ylabel("L2 norm of a token (no unit)")
    axis.grid(alpha=0.3)
    figure.legend(fontsize=9, loc="outside lower center", ncols=3)
    return _with_title(figure, f"Token norms, {model_name}")


def plot_norm_map(image: np.ndarray, norms: np.ndarray, title: str) -> Figure:
    """Plots the norm of each patch token after the last block, beside the image.

    Args:
        image: uint8 `(h, w, 3)`.
        norms: `(rows, columns)`.
        title: Second part of the title.
    """
    figure, axes = _image_panels(image, 2)
    axes[0].imshow(image)
    _add_colorbar(axes[1], _draw_heatmap(axes[1], image, norms, opaque=True), "L2 norm (no unit)")
    return _with_title(figure, f"Token norms after the last block, {title}")


def _with_title(figure, title):
    figure.suptitle(plain_text(title), fontsize=10, wrap=True)
    return figure


def _figure_size(width, height, longest, right=0.0):
    """Returns (width, height) in inches for axes of these proportions, title and labels."""
    scale = longest / max(width, height)
    return max(width * scale, 2.5) + right, max(height * scale, 1.5) + 0.8


def _image_panels(image, count, width=2.7):
    """Returns a figure and a flat array of axes in rows of up to four, for images of one shape."""
    rows = -(-count // 4)
    columns = -(-count // rows)
    height = width * np.clip(image.shape[0] / image.shape[1], 0.3, 2)
    size = (columns * (width + 0.7) + 0.2, rows * (height + 0.45) + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        _set_pixel_ticks(axis, *image.shape[:2])
    for row in range(rows):
        axes[row * columns].set_ylabel("row (pixels)", fontsize=8)
    for axis in axes[-columns:]:
        axis.set_xlabel("column (pixels)", fontsize=8)
    return figure, axes


def _add_colorbar(axis, mappable, label):
    """Adds a color bar of the same height to the right of an axis."""
    inset = axis.inset_axes([1.03, 0, 0.04, 1])
    extend = "max" if mappable.get_array().max() > mappable.norm.vmax else "neither"
    axis.figure.colorbar(mappable, cax=inset, extend=extend)
    inset.tick_params(labelsize=7)
    inset.set_ylabel(label, fontsize=8)


def _set_pixel_ticks(axis, height, width):
    """Sets ticks at the first and last pixel of both sides."""
    axis.set_xticks([0, width - 1])
    axis.set_yticks([0, height - 1])
    axis.tick_params(labelsize=7)


def _draw_heatmap(axis, image, values, opaque=False):
    """Draws a heatmap over the image in grayscale; returns the mappable for the color bar.

    The highest 1% of the patches may exceed the color scale: otherwise a single outlier would hide
    all other differences.
    """
    height, width = image.shape[:2]
    if not opaque:
        axis.imshow(image.mean(axis=2), "gray", vmin=0, vmax=255)
    highest = np.sort(values, axis=None)[-1 - values.size // 100]
    return axis.imshow(
        values, "viridis", alpha=None if opaque else 0.7, interpolation="nearest",
        vmin=values.min(), vmax=highest, extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        aspect="equal",
    )  # fmt: skip


def _draw_contours(axis, image, values):
    """Draws contours around the patches with the highest values."""
    y, x = (
        np.concatenate([[0], (np.arange(cells) + 0.5) * side / cells, [side]]) - 0.5
        for cells, side in zip(values.shape, image.shape[:2], strict=True)
    )
    for fraction, color in CONTOURS.items():
        level = np.quantile(values, 1 - fraction)
        if values.min() < level < values.max():  # matplotlib warns of a contour that does not exist
            contour = axis.contour(
                x, y, np.pad(values, 1, "edge"), [level], colors=color, linewidths=1.2
            )
            contour.set_path_effects([patheffects.withStroke(linewidth=2, foreground="black")])
