"""Measures the input pipeline and draws its first batch."""

import dataclasses
import time

import tensorflow as tf

from vitkeras import data
from vitkeras.data.examples import Source
from vitkeras.data.sharding import HostShard
from vitkeras.preflight import report
from vitkeras.preflight.report import CheckResult

MAX_DRAWN_IMAGES = 32
NOTES = (
    "Images per second on this machine after each stage: read, the encoded files; crop, decoded, "
    "cropped and resized; augment, with all augmentation of single images; batch, mixed and "
    "batched, as in training."
)


def check_pipeline(
    source: Source,
    preprocessing: data.Preprocessing,
    augmentation: data.Augmentation,
    batch_size: int,
    seed: int = 0,
    seconds: float = 12.0,
    device_rate: float | None = None,
) -> CheckResult:
    """Measures the stages of the training pipeline and compares its rate with that of the devices.

    Args:
        source: The data source.
        preprocessing: Preprocessing of the run.
        augmentation: Augmentation of the run.
        batch_size: Global batch size.
        seed: Seed of the run.
        seconds: Duration of the measurement.
        device_rate: Images per second that all devices together can process; None if unknown.
    """
    result = CheckResult("Input pipeline", notes=NOTES)
    try:
        rates = measure_stages(source, preprocessing, augmentation, batch_size, seed, seconds)
        batches = data.training_batches(source, preprocessing, batch_size, 1, seed, augmentation)
        images, labels = next(batches.as_numpy_iterator())
    except tf.errors.InvalidArgumentError:
        result.problems.append(
            "An image outside of the sample cannot be decoded. Use --full to list all such images."
        )
        return result
    result.values["images_per_second"] = {name: round(rate, 1) for name, rate in rates.items()}
    images, labels = images[:MAX_DRAWN_IMAGES], labels[:MAX_DRAWN_IMAGES]
    height, width = images.shape[1:3]
    caption = f"First {len(images)} training images ({height}x{width}), augmented, with labels."
    result.figures.append((caption, report.draw_batch(images, labels, source.class_names)))
    if device_rate and rates["batch"] < device_rate:
        result.warnings.append(
            f"The input pipeline of this machine delivers {rates['batch']:.0f} images/s and the "
            f"devices process up to {device_rate:,.0f}: they will wait for data."
        )
    return result


def measure_stages(
    source: Source,
    preprocessing: data.Preprocessing,
    augmentation: data.Augmentation,
    batch_size: int,
    seed: int,
    seconds: float,
) -> dict[str, float]:
    """Returns the images per second of the training pipeline, cut off after each of its stages."""
    examples = source.examples("train")
    steps = data.steps_per_epoch(source, batch_size)
    shard = HostShard.for_batches(batch_size, examples.max_groups)

    def batches(augmentation):
        return data.training_batches(source, preprocessing, batch_size, 100, seed, augmentation)

    no_mixing = dataclasses.replace(augmentation, mixup_alpha=0.0, cutmix_alpha=0.0)
    stages = {
        "read": examples.shuffled(seed, shard, 0, steps).batch(batch_size),
        "crop": batches(data.Augmentation(augmentation.crop)),
        "augment": batches(no_mixing),
        "batch": batches(augmentation),
    }
    duration = seconds / len(stages)
    return {name: _rate(stage, batch_size, duration) for name, stage in stages.items()}


def _rate(batches, batch_size, seconds):
    iterator = iter(batches.repeat())
    next(iterator)  # setup
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        next(iterator)
        count += batch_size
    return count / (time.perf_counter() - start)
