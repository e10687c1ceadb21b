"""The paper's figures of a trained ViT, from the arrays of `vitkeras.analysis` to PNG.

The colour map is viridis, whose brightness grows with the value, so that it can be read in print
and by colour-blind readers; other colours are of the palette of Okabe and Ito.
"""

import io

import numpy as np
from matplotlib import patheffects
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

DPI = 100
#: Components that the paper shows, and how many of its maps a side of ours has at most.
NUM_COMPONENTS, MAX_MAPS = 28, 8
#: Contours are drawn around these shares of the patches, those with the highest values.
AROUND = {0.25: "white", 0.1: "#f0e442", 0.03: "#d55e00"}


def to_png(figure):
    """Returns a figure as the bytes of a PNG."""
    content = io.BytesIO()
    figure.savefig(content, dpi=DPI, format="png")
    return content.getvalue()


def components(found, name):
    """Draws the first principal components of filters that see three colours, as RGB tiles.

    Args:
        found: The `Components`.
        name: Of the model, for the title.
    """
    tiles = found.components[:NUM_COMPONENTS]
    side = tiles.shape[1]
    figure = Figure(figsize=(7, 4.9), layout="constrained")
    axes = figure.subplots(4, 7)
    for number, axis in enumerate(axes.flat):
        if number < len(tiles):
            tile = tiles[number]
            axis.imshow(0.5 + tile / (2 * np.abs(tile).max()))  # 0 is grey
            axis.set_title(f"{number + 1}: {found.explained[number]:.1%}", fontsize=8)
            _ends(axis, side, side)
        else:
            axis.axis("off")
    figure.supxlabel("column (pixels)", fontsize=9)
    figure.supylabel("row (pixels)", fontsize=9)
    return _titled(figure, f"Principal components of the first filters, {name}")


def positions(similarity, name):
    """Draws how alike position embeddings are: for some patches, a map of all others.

    Args:
        similarity: `(rows, columns, rows, columns)`.
        name: Of the model, for the title.
    """
    shown = [spread(side) for side in similarity.shape[:2]]
    rows, columns = similarity.shape[2:]
    gap = max(1, max(rows, columns) // 12)
    heights, widths = (
        len(kept) * (side + gap) - gap for kept, side in zip(shown, (rows, columns), strict=True)
    )
    canvas = np.full((heights, widths), np.nan, "float32")
    for i, row in enumerate(shown[0]):
        for j, column in enumerate(shown[1]):
            y, x = i * (rows + gap), j * (columns + gap)
            canvas[y : y + rows, x : x + columns] = similarity[row, column]
    figure = Figure(figsize=_size(widths, heights, 6.5, right=1.0), layout="constrained")
    axis = figure.subplots()
    picture = axis.imshow(canvas, "viridis", vmin=-1, vmax=1, interpolation="nearest")
    for ticks, kept, side in (
        (axis.set_yticks, shown[0], rows), (axis.set_xticks, shown[1], columns)
    ):  # fmt: skip
        centres = [i * (side + gap) + (side - 1) / 2 for i in range(len(kept))]
        ticks(centres, [str(place + 1) for place in kept])
    axis.set_xlabel("column of the patch")
    axis.set_ylabel("row of the patch")
    axis.spines[:].set_visible(False)
    _colour_bar(axis, picture, "cosine similarity (no unit)")
    return _titled(figure, f"Position embedding similarity, {name}")


def spread(side):
    """Returns at most `MAX_MAPS` places of a side, the ends among them."""
    return np.unique(np.linspace(0, side - 1, min(side, MAX_MAPS)).round().astype(int)).tolist()


def distances(values, uniform, image_size, name):
    """Draws the mean attention distance of each head against the depth of its block.

    Args:
        values: `(b, blocks, k)`, in pixels.
        uniform: The distance of attention that is the same everywhere.
        image_size: `(height, width)` of the model's image.
        name: Of the model, for the title.
    """
    mean, deviation = values.mean(axis=0), values.std(axis=0)  # (blocks, k)
    blocks, heads = mean.shape
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    beside = np.linspace(-0.28, 0.28, heads) if heads > 1 else np.zeros(1)
    label = "a head (bar: standard deviation over the images)" if len(values) > 1 else "a head"
    for block in range(blocks):
        order = np.argsort(mean[block])
        axis.errorbar(
            block + 1 + beside, mean[block][order], deviation[block][order],
            fmt="o", markersize=3.5, linewidth=1, color="#0072b2", ecolor="#7fb8d8",
            label=label if block == 0 else None,
        )  # fmt: skip
    axis.axhline(uniform, color="#d55e00", linestyle="--", label="uniform attention")
    axis.set_xlabel("depth (block)")
    axis.set_ylabel(f"mean attention distance (pixels of {image_size[0]}x{image_size[1]})")
    axis.set_xlim(0.4, blocks + 0.6)
    axis.set_ylim(0, 1.08 * max((mean + deviation).max(), uniform))
    axis.set_xticks(range(1, blocks + 1, 1 + blocks // 25))
    axis.grid(alpha=0.3)
    figure.legend(fontsize=9, loc="outside lower center", ncols=2)
    return _titled(figure, f"Attention distance, {name}")


def over_image(photo, values, title, label, name):
    """Draws an image, a map over it in colours, and the map's contours.

    Args:
        photo: uint8 `(h, w, 3)`.
        values: `(rows, columns)`.
        title: Of the figure.
        label: Of the colours, with the unit.
        name: Of the model, for the title.
    """
    figure, axes = _panels(photo, 3)
    axes[0].imshow(photo)
    picture = _heat(axes[1], photo, values)
    _colour_bar(axes[1], picture, label)
    axes[2].imshow(photo)
    _contours(axes[2], photo, values)
    return _titled(figure, f"{title}, {name}")


def heads(photo, maps, title, name):
    """Draws where each head looks.

    Args:
        photo: uint8 `(h, w, 3)`.
        maps: `(k, rows, columns)`, shares.
        title: Of the figure.
        name: Of the model, for the title.
    """
    figure, axes = _panels(photo, 1 + len(maps), wide=2.3)
    axes[0].imshow(photo)
    for number, (axis, values) in enumerate(zip(axes[1:], maps, strict=False)):
        picture = _heat(axis, photo, 100 * values)
        axis.set_title(f"head {number + 1}: {values.sum():.0%} to patches", fontsize=8)
        _colour_bar(axis, picture, "%")
    for axis in axes[1 + len(maps) :]:
        axis.axis("off")
    return _titled(figure, f"{title}, {name}")


def norms(values, layout, name):
    """Draws how long the vectors of tokens are, against depth.

    Args:
        values: `(b, blocks + 1, t)`.
        layout: The model's `Layout`.
        name: Of the model, for the title.
    """
    depth = np.arange(values.shape[1])
    patches = values[..., layout.num_prefix_tokens :]  # (b, blocks + 1, n)
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    low, middle, high = np.percentile(patches, (5, 50, 95), axis=(0, 2))
    axis.fill_between(
        depth, low, high, color="#0072b2", alpha=0.25, label="patches, 5 to 95 %", linewidth=0
    )
    axis.plot(depth, middle, color="#0072b2", label="patches, median")
    axis.plot(depth, patches.max(axis=(0, 2)), ":", color="#0072b2", label="patches, longest")
    if layout.class_token:
        axis.plot(depth, values[..., 0].mean(axis=0), "--", color="#d55e00", label="class token")
    if layout.num_registers:
        registers = values[..., int(layout.class_token) : layout.num_prefix_tokens]
        axis.plot(
            depth, registers.mean(axis=(0, 2)), "-.", color="#009e73", label="registers, mean"
        )
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("depth (0: before the first block)")
    axis.set_ylabel("length of a token's vector (L2 norm, no unit)")
    axis.grid(alpha=0.3)
    figure.legend(fontsize=9, loc="outside lower center", ncols=3)
    return _titled(figure, f"Token norms, {name}")


def norm_map(photo, values, name):
    """Draws the length of each patch's vector after the last block.

    Args:
        photo: uint8 `(h, w, 3)`.
        values: `(rows, columns)`.
        name: Of the model, for the title.
    """
    figure, axes = _panels(photo, 2)
    axes[0].imshow(photo)
    picture = _heat(axes[1], photo, values, opaque=True)
    _colour_bar(axes[1], picture, "L2 norm (no unit)")
    return _titled(figure, f"Token norms after the last block, {name}")


def _titled(figure, title):
    figure.suptitle(title, fontsize=10, wrap=True)
    return figure


def _size(width, height, longest, right=0.0):
    """Returns inches for something of these proportions, with room for a title and labels."""
    scale = longest / max(width, height)
    return max(width * scale, 2.5) + right, max(height * scale, 1.5) + 0.8


def _panels(photo, count, wide=2.7):
    """Returns a figure and its axes, a row or several, each of the photo's proportions."""
    rows = -(-count // 4)
    columns = -(-count // rows)
    height = wide * np.clip(photo.shape[0] / photo.shape[1], 0.3, 2)
    size = (columns * (wide + 0.7) + 0.2, rows * (height + 0.45) + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        _ends(axis, *photo.shape[:2])
    for row in range(rows):
        axes[row * columns].set_ylabel("row (pixels)", fontsize=8)
    for axis in axes[-columns:]:
        axis.set_xlabel("column (pixels)", fontsize=8)
    return figure, axes


def _colour_bar(axis, picture, label):
    """Puts what colours mean beside an axis, as high as that."""
    beside = axis.inset_axes([1.03, 0, 0.04, 1])
    extend = "max" if picture.get_array().max() > picture.norm.vmax else "neither"
    axis.figure.colorbar(picture, cax=beside, extend=extend)
    beside.tick_params(labelsize=7)
    beside.set_ylabel(label, fontsize=8)


def _ends(axis, height, width):
    """Marks the first and the last pixel of both sides."""
    axis.set_xticks([0, width - 1])
    axis.set_yticks([0, height - 1])
    axis.tick_params(labelsize=7)


def _heat(axis, photo, values, opaque=False):
    """Draws a map over the whole photo, which is grey beneath it; returns what has the colours.

    The highest 1 % of the patches may lie beyond the scale: else a single one could hide all.
    """
    height, width = photo.shape[:2]
    if not opaque:
        axis.imshow(photo.mean(axis=2), "gray", vmin=0, vmax=255)
    highest = np.sort(values, axis=None)[-1 - values.size // 100]
    return axis.imshow(
        values, "viridis", alpha=None if opaque else 0.7, interpolation="nearest",
        vmin=values.min(), vmax=highest, extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        aspect="equal",
    )  # fmt: skip


def _contours(axis, photo, values):
    """Draws lines around the patches with the highest values."""
    y, x = (
        np.concatenate([[0], (np.arange(places) + 0.5) * side / places, [side]]) - 0.5
        for places, side in zip(values.shape, photo.shape[:2], strict=True)
    )
    for share, colour in AROUND.items():
        level = np.quantile(values, 1 - share)
        if values.min() < level < values.max():  # else there is no such line
            lines = axis.contour(
                x, y, np.pad(values, 1, "edge"), [level], colors=colour, linewidths=1.2
            )
            lines.set_path_effects([patheffects.withStroke(linewidth=2, foreground="black")])
