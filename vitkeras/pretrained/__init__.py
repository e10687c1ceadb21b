"""Pretrained weights: `from_pretrained`, `load_weights`, `save_weights`, `transfer_weights`."""

from vitkeras.pretrained.files import open_weights
from vitkeras.pretrained.loading import from_pretrained, load_weights
from vitkeras.pretrained.mapping import IMAGENET_MEAN_STD, INCEPTION_MEAN_STD
from vitkeras.pretrained.saving import save_weights
from vitkeras.pretrained.transfer import transfer_weights

__all__ = [
    "IMAGENET_MEAN_STD",
    "INCEPTION_MEAN_STD",
    "from_pretrained",
    "load_weights",
    "open_weights",
    "save_weights",
    "transfer_weights",
]
