"""A tiny compiled model and a data set for it."""

import numpy as np

import vitkeras as vk
from helpers.models import TINY
from vitkeras import training

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3)).astype("float32")
LABELS = np.arange(12) % 3


def compiled_model(freeze=None, name="adamw", dropout_rate=0.1, **options):
    """A compiled model that runs eagerly, which is fastest for a few steps."""
    model = vk.vit("Ti/4", image_size=8, num_classes=3, dropout_rate=dropout_rate, **TINY)
    training.freeze(model, freeze)
    optimizer = training.make_optimizer(name, 1e-2, variables=model.trainable_variables, **options)
    optimizer.build(model.trainable_variables)
    loss = training.SmoothedCrossEntropy()
    model.compile(optimizer, loss, metrics=["accuracy"], run_eagerly=True)
    return model
