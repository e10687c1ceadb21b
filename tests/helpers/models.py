"""Tiny models."""

import numpy as np

import vitkeras as vk
from vitkeras import training

TINY = {"hidden_dim": 24, "mlp_dim": 48, "num_heads": 3, "num_layers": 2}
SIZE, PATCH = (16, 24), 8


def make(variant=f"Ti/{PATCH}", image_size=SIZE, num_classes=3, **options):
    """Returns a tiny ViT with random weights: also those that are initialized with 0 or 1."""
    model = vk.vit(variant, image_size=image_size, num_classes=num_classes, **TINY, **options)
    rng = np.random.default_rng(1)
    for weight in model.weights:
        weight.assign(weight + 0.2 * rng.normal(size=weight.shape))
    return model


def compiled(**options):
    """Returns a tiny ViT with a built optimizer."""
    model = vk.vit("Ti/8", image_size=64, num_classes=5, **(TINY | options))
    optimizer = training.make_optimizer("adamw", 0.1, variables=model.trainable_variables)
    optimizer.build(model.trainable_variables)
    model.compile(optimizer, training.SmoothedCrossEntropy())
    return model
