"""Weight files in and out: `load_weights`, `from_pretrained`, `save_weights`."""

from vitkeras.weights.files import open_weights
from vitkeras.weights.loading import from_pretrained, load_weights
from vitkeras.weights.rules import HALF, IMAGENET
from vitkeras.weights.saving import save_weights

__all__ = ["HALF", "IMAGENET", "from_pretrained", "load_weights", "open_weights", "save_weights"]
