"""Data sources, preprocessing, augmentation and batches. Needs TensorFlow on every backend."""

from vitkeras.data.augmentation import CROPS, Augmentation
from vitkeras.data.decoding import decode_image
from vitkeras.data.evaluation_folder import EvaluationFolder
from vitkeras.data.folder import FolderSource
from vitkeras.data.pipeline import evaluation_batches, steps_per_epoch, training_batches
from vitkeras.data.preprocessing import Preprocessing
from vitkeras.data.sources import open_source
from vitkeras.data.splits import SPLITS, stratified_split
from vitkeras.data.tfds import TFDSSource

__all__ = [
    "Augmentation",
    "CROPS",
    "EvaluationFolder",
    "FolderSource",
    "Preprocessing",
    "SPLITS",
    "TFDSSource",
    "decode_image",
    "evaluation_batches",
    "open_source",
    "steps_per_epoch",
    "stratified_split",
    "training_batches",
]
