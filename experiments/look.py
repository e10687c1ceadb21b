"""What `experiments.preflight` measures and draws."""

import dataclasses
import io
import itertools
import time
from typing import NamedTuple

import matplotlib
import numpy as np
from PIL import Image

from vitkeras import data
from vitkeras.data.checking import why_bad
from vitkeras.data.hosts import Share, whole
from vitkeras.data.stored import Columns

STAGES = (
    "Images per second on this machine: read, the files alone; crop, with the crop decoded and "
    "resized; augmented, with all that is done to a single image; batches, mixed and stacked, as "
    "they are trained on."
)
MEMORY = (
    "Memory is an estimate from the graph of the training step, each operation taken on its own: "
    "a compiler that fuses them needs less. A batch is global, over all devices and pieces."
)
TPU = (
    "Compiled for the slice, not run. Arguments (weights, moments, images), temporaries and code "
    "lie in the chip's memory; memory share is their part of it. Arithmetic and memory ms: what "
    "the chip's published peaks would take for the step's operations, and for what it moves to "
    "and from the large memory (hbm), read off the compiled module; images per second are those "
    "of the larger of the two, the most there can be. accessed is what the compiler counts, the "
    "fast memory on the chip included. The sum over replicas is not in it. pieces are "
    "accumulation_steps, train_remat the step with remat=True, which computes blocks again on the "
    "way back. What moves most, by the compiler's names (slice-start and copy-start: fetched "
    "ahead of use):"
)


class Sizes(NamedTuple):
    """Rows of (height, width, kind), and pairs (place, reason) of what cannot be decoded."""

    rows: list
    bad: list


def _some(stored, count):
    """Returns (place, example) of about `count` examples, spread over what can be chosen."""
    if count is None or count >= len(stored):
        return enumerate(stored.in_order().as_numpy_iterator())
    if isinstance(stored, Columns):
        stride = len(stored) // count
        chosen = stored.in_order(whole(stride, 0, stride)).as_numpy_iterator()
        return zip(itertools.count(0, stride), chosen, strict=False)
    # Records have to be read from the beginning; TensorFlow Datasets shuffled them when it wrote.
    return enumerate(stored.in_order().take(count).as_numpy_iterator())


def sizes(stored, count):
    """Decodes examples of a split, or all where `count` is None, and returns their `Sizes`."""
    found = Sizes([], [])
    for place, example in _some(stored, count):
        content = example["image_bytes"]
        reason = why_bad(content)
        if reason:
            found.bad.append((place, reason))
            continue
        height, width, _ = data.decode_image(content).shape
        try:
            with Image.open(io.BytesIO(content)) as image:
                kind = f"{image.format} {image.mode}"
        except (OSError, ValueError):
            kind = "unknown to PIL"
        found.rows.append((height, width, kind))
    return found


def labels(source, count):
    """Returns labels of the training split, all that cost nothing or `count` of them."""
    found = source.labels("train")
    if not isinstance(found, np.ndarray):
        found = np.fromiter(itertools.islice(found, count and 10 * count), np.int64)
    return found


def shares(kinds):
    """Returns a dict from kind to its share in percent, the largest first."""
    names, counts = np.unique(list(kinds), return_counts=True)
    order = np.argsort(-counts)
    return {str(names[i]): round(100 * counts[i] / counts.sum(), 1) for i in order}


def _rate(batches, images, seconds):
    """Returns images/s of a data set whose elements are of so many images."""
    iterator = iter(batches.repeat())
    next(iterator)  # what is made once
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        next(iterator)
        count += images
    return count / (time.perf_counter() - start)


def time_stages(source, preprocessing, augmentation, config, seconds):
    """Returns images/s of the pipeline, cut off behind each of its stages."""
    stored, size = source.stored("train"), config.batch_size
    steps = data.steps_per_epoch(source, size)
    share = Share.of(size, stored.most_groups)

    def batches(augmentation):
        return data.training_batches(source, preprocessing, size, 100, config.seed, augmentation)

    no_mixing = dataclasses.replace(augmentation, mixup_alpha=0.0, cutmix_alpha=0.0)
    stages = {
        "read": stored.shuffled(config.seed, share, 0, steps).batch(size),
        "crop": batches(data.Augmentation(augmentation.crop)),
        "augmented": batches(no_mixing),
        "batches": batches(augmentation),
    }
    return {name: _rate(stage, size, seconds / 4) for name, stage in stages.items()}


def told(facts):
    """Returns a line for each fact."""
    lines = []
    for name, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {_number(v)}" for k, v in value.items())
        elif isinstance(value, list):
            value = "; ".join(map(str, value)) or "none"
        lines.append(f"{name.replace('_', ' ')}: {_number(value)}")
    return "\n".join(lines)


def _number(value):
    return f"{value:,}" if isinstance(value, (int, float)) else str(value)


def _figure(width, height):
    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(width, height), layout="constrained")


def _png(figure):
    from matplotlib import pyplot

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    pyplot.close(figure)
    return buffer.getvalue()


def draw_balance(names, counts):
    """Returns a PNG of the images of each class, the largest first."""
    order = np.argsort(-counts, kind="stable")
    figure, axes = _figure(9, 3)
    axes.bar(np.arange(len(counts)), counts[order], width=1.0 if len(counts) > 50 else 0.8)
    if len(counts) <= 50:
        axes.set_xticks(np.arange(len(counts)), [names[i] for i in order], rotation=60, ha="right")
    else:
        axes.set_xlabel(f"{len(counts)} classes, {names[order[0]]} to {names[order[-1]]}")
    axes.set_ylabel("images")
    return _png(figure)


def draw_sizes(sides):
    """Returns a PNG with a point for each image."""
    figure, axes = _figure(5, 4)
    axes.scatter(sides[:, 1], sides[:, 0], s=12, alpha=0.4, linewidths=0)
    axes.set(xlabel="width (pixels)", ylabel="height (pixels)")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    return _png(figure)


def draw_batch(source, preprocessing, augmentation, config, most=32):
    """Returns (caption, PNG) of the first images of the run with their labels."""
    batches = data.training_batches(
        source, preprocessing, config.batch_size, 1, config.seed, augmentation
    )
    images, targets = next(batches.as_numpy_iterator())
    images, targets = images[:most], targets[:most]
    columns = min(8, len(images))
    rows = -(-len(images) // columns)
    figure, _ = _figure(1.4 * columns, 1.7 * rows)
    figure.clear()
    for i, (image, target) in enumerate(zip(images, targets, strict=True)):
        axes = figure.add_subplot(rows, columns, i + 1)
        axes.imshow(image)
        axes.axis("off")
        axes.set_title(_label(target, source.class_names), fontsize=7)
    caption = f"{len(images)} images of {images.shape[1]}x{images.shape[2]} pixels and their labels"
    return caption, _png(figure)


def _label(target, names):
    if np.ndim(target) == 0:
        return str(names[target])[:20]
    best = [i for i in np.argsort(-target)[:2] if target[i] > 0.005]
    return "\n".join(f"{target[i]:.2f} {names[i]}"[:20] for i in best)
