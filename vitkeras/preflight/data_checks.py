"""Checks the images and labels of a data source."""

import io
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from vitkeras import data
from vitkeras.data.examples import InMemoryExamples, Source
from vitkeras.data.image_headers import read_header
from vitkeras.data.images import decode_error
from vitkeras.data.sharding import exact_shard
from vitkeras.preflight import report
from vitkeras.preflight.advice import advise_on_classes
from vitkeras.preflight.report import CheckResult

MAX_LISTED_IMAGES = 20
#: A larger median ratio of the horizontal and the vertical scale is a warning, and a smaller
#: percentage of the area that the central crop shows.
MAX_STRETCH, MIN_AREA_KEPT = 2, 50
#: Labels are read without decoding images, so that more of them are read than images.
LABELS_PER_IMAGE = 10


class Sample(NamedTuple):
    """Decoded images of all splits.

    Args:
        sizes: Pairs (height, width) in pixels.
        formats: File format and color mode of each image, such as "JPEG RGB".
        bad: Pairs (name, reason) of the images that cannot be decoded.
        num_transparent: Number of images that may have transparent pixels.
        num_rotated: Number of images with an EXIF orientation other than upright.
    """

    sizes: list[tuple[int, int]]
    formats: list[str]
    bad: list[tuple[str, str]]
    num_transparent: int = 0
    num_rotated: int = 0

    @property
    def num_images(self) -> int:
        """Number of images, good and bad."""
        return len(self.sizes) + len(self.bad)


def decode_sample(source: Source, count: int | None) -> Sample:
    """Decodes images of every split of a source.

    Args:
        source: The data source.
        count: Images per split; None for all.
    Returns:
        The sample, with the bad images that the source has found itself.
    """
    sample = Sample([], [], [])
    num_transparent = num_rotated = 0
    for split in data.SPLITS:
        for index, example in _spread(source.examples(split), count):
            content = example["image_bytes"]
            reason = decode_error(content)
            if reason:
                sample.bad.append((f"{split} {index}", reason))
                continue
            height, width, _ = data.decode_image(content).shape
            sample.sizes.append((height, width))
            sample.formats.append(_format(content))
            header = read_header(content)
            num_rotated += int(header.orientation) != 1
            num_transparent += bool(header.has_alpha)
    bad = [*source.bad_images, *sample.bad]
    return sample._replace(bad=bad, num_transparent=num_transparent, num_rotated=num_rotated)


def _spread(examples, count) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (index, example) of about `count` examples at equal distances."""
    if count is None or count >= len(examples):
        return enumerate(examples.in_order().as_numpy_iterator())
    if isinstance(examples, InMemoryExamples):
        stride = len(examples) // count
        chosen = examples.in_order(exact_shard(stride, 0, stride)).as_numpy_iterator()
        return zip(itertools.count(0, stride), chosen, strict=False)
    # Record files can be read only from the start; TensorFlow Datasets shuffles when it writes.
    return enumerate(examples.in_order().take(count).as_numpy_iterator())


def _format(content):
    try:
        with Image.open(io.BytesIO(content)) as image:
            return f"{image.format} {image.mode}"
    except (OSError, ValueError):
        return "unknown to Pillow"


def read_labels(source: Source, count: int | None) -> np.ndarray:
    """Returns labels of the training split.

    Args:
        source: The data source.
        count: Number of images in a sample; None for all labels.
    """
    labels = source.labels("train")
    if isinstance(labels, np.ndarray):
        return labels
    limit = count and LABELS_PER_IMAGE * count
    return np.fromiter(itertools.islice(labels, limit), np.int64)


def check_images(
    sample: Sample, num_examples: dict[str, int], preprocessing: data.Preprocessing
) -> CheckResult:
    """Describes the images of a sample and compares their sizes with that of the model.

    Args:
        sample: The decoded images.
        num_examples: Images per split.
        preprocessing: Preprocessing of the run.
    """
    sizes, image_size = np.array(sample.sizes), np.array(preprocessing.image_size)
    median = np.median(sizes, axis=0)
    values = {
        "images": num_examples,
        "images_checked": sample.num_images,
        "bad_images": len(sample.bad),
        "bad_percent": 100 * len(sample.bad) / sample.num_images,
        "bad": [f"{name}: {reason}" for name, reason in sample.bad[:MAX_LISTED_IMAGES]],
        "median_size": [int(side) for side in median],
        "formats_percent": _percentages(sample.formats),
        "transparent_images": sample.num_transparent,
        "rotated_images": sample.num_rotated,
        "preprocessing": preprocessing.describe(),
    }
    caption = "Height and width of the checked images, in pixels."
    result = CheckResult("Images", values, figures=[(caption, report.draw_image_sizes(sizes))])
    if (median < 0.5 * image_size).any():
        result.warnings.append(
            "At least half of the images are less than half as large as image_size: enlarging them "
            "only blurs them."
        )
    scales = image_size / sizes  # (images, 2)
    stretch = scales.max(1) / scales.min(1)
    if preprocessing.crop_fraction is None:
        result.values["median_stretch"] = round(float(np.median(stretch)), 2)
        if np.median(stretch) > MAX_STRETCH:
            result.warnings.append(
                f"Half of the images are stretched by a factor of {np.median(stretch):.1f} or more "
                "along one side: --config.resize=crop keeps the aspect ratio."
            )
    else:
        kept = 100 * float(np.median(preprocessing.crop_fraction**2 / stretch))
        result.values["median_area_kept_percent"] = round(kept, 1)
        if kept < MIN_AREA_KEPT:
            result.warnings.append(
                f"The central crop shows {kept:.0f} % of the area or less of half of the images: "
                "--config.resize=squash shows all of it."
            )
    return result


def _percentages(names):
    """Returns a dict from name to its percentage, in descending order."""
    unique, counts = np.unique(names, return_counts=True)
    order = np.argsort(-counts)
    return {str(unique[i]): round(100 * counts[i] / counts.sum(), 1) for i in order}


def check_labels(
    labels: np.ndarray, class_names: list[str], num_examples: int, is_weighted: bool = False
) -> CheckResult:
    """Checks that labels are class indices and that no class is missing or rare.

    Args:
        labels: Integers, of all training images or of a sample.
        class_names: Names of the classes.
        num_examples: Number of training images.
        is_weighted: Whether the loss weighs the classes.
    """
    num_classes = len(class_names)
    result = CheckResult("Labels", {"classes": num_classes})
    is_sample = len(labels) < num_examples
    invalid = labels[(labels < 0) | (labels >= num_classes)]
    if len(invalid):
        result.problems.append(
            f"Labels must be integers from 0 to {num_classes - 1}. Received: {len(invalid)} other "
            f"labels, such as {invalid[0]}."
        )
        labels = labels[~np.isin(labels, invalid)]
    counts = np.bincount(labels, minlength=num_classes)
    result.values["images_per_class"] = {"min": int(counts.min()), "max": int(counts.max())}
    missing = [name for name, count in zip(class_names, counts, strict=True) if not count]
    if missing:
        result.warnings.append(
            f"No image among {len(labels)} labels is of the class {', '.join(missing[:5])}."
        )
    result.warnings += advise_on_classes(counts, class_names, is_weighted, is_sample)
    png = report.draw_class_counts(class_names, counts)
    result.figures.append(("Training images per class.", png))
    return result
