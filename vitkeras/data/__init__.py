"""Images in: sources, preprocessing and batches. Everything here needs TensorFlow."""

from vitkeras.data.pipeline import evaluation_batches, steps_per_epoch, training_batches
from vitkeras.data.preprocessing import (
    AUGMENTATIONS,
    Preprocessing,
    check_augmentation,
    decode_image,
)
from vitkeras.data.sources import FolderSource, TFDSSource, open_source
from vitkeras.data.splits import stratified_split

__all__ = [
    "AUGMENTATIONS",
    "FolderSource",
    "Preprocessing",
    "TFDSSource",
    "check_augmentation",
    "decode_image",
    "evaluation_batches",
    "open_source",
    "steps_per_epoch",
    "stratified_split",
    "training_batches",
]
