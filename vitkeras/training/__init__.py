"""Training: loss, optimizers, strategies, callbacks, checkpoints and the training loop.

The names exported here work on every backend; the other modules need TensorFlow.
"""

import keras  # noqa: F401 (before any submodule: see `_register_classes` in vitkeras/__init__.py)

# isort: split
from vitkeras.training.freezing import freeze
from vitkeras.training.losses import SmoothedCrossEntropy, SmoothedSigmoidCrossEntropy
from vitkeras.training.optimizers import WarmupDecay, make_optimizer

__all__ = [
    "SmoothedCrossEntropy",
    "SmoothedSigmoidCrossEntropy",
    "WarmupDecay",
    "freeze",
    "make_optimizer",
]
