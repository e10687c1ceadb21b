"""The models that are measured, their inputs, and a step of each."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

import vitkeras as vk
from experiments.benchmarks.timing import NUM_CLASSES
from vitkeras.errors import InputError
from vitkeras.models.config import ViTConfig


def vitkeras_model(variant: str, image_size: int) -> keras.Model:
    """Returns the model of this package; it takes pixels from 0 to 255."""
    return vk.vit(variant, image_size=image_size, num_classes=NUM_CLASSES)


def keras_hub_model(variant: str, image_size: int) -> keras.Model:
    """Returns keras_hub's ViT classifier of the same size; it takes values from -1 to 1.

    Raises:
        InputError: If keras_hub is not installed.
    """
    try:
        import keras_hub
    except ImportError as error:
        raise InputError(
            "The baseline needs keras_hub: install the extra `benchmark`, or use --nobaseline."
        ) from error
    config = ViTConfig.from_variant(variant, image_size=image_size)
    backbone = keras_hub.models.ViTBackbone(
        image_shape=(image_size, image_size, 3),
        patch_size=config.patch_size,
        **config.sizes._asdict(),
    )
    return keras_hub.models.ViTImageClassifier(
        backbone=backbone, num_classes=NUM_CLASSES, preprocessor=None
    )


MODELS = {"vitkeras": vitkeras_model, "keras_hub": keras_hub_model}


def random_batch(name: str, batch_size: int, image_size: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns random images `(b, h, w, 3)`, as a model of `MODELS` takes them, and labels `(b,)`.

    The graph of our model includes the rescaling of uint8 pixels; that of keras_hub does not.
    """
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch_size, image_size, image_size, 3), np.uint8)
    if name == "keras_hub":
        images = images.astype("float32") / 127.5 - 1.0
    return tf.constant(images), tf.constant(rng.integers(0, NUM_CLASSES, batch_size))


def forward_pass(model: keras.Model, images: tf.Tensor, jit_compile: bool) -> Callable[[], object]:
    """Returns a function that computes the logits and waits for them."""
    forward = tf.function(lambda x: model(x, training=False), jit_compile=jit_compile)
    return lambda: forward(images).numpy()


def training_step(
    model: keras.Model, images: tf.Tensor, labels: tf.Tensor, jit_compile: bool
) -> Callable[[], object]:
    """Compiles the model with AdamW; returns a function that takes one training step."""
    model.compile(
        keras.optimizers.AdamW(1e-4),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=jit_compile,
    )
    return lambda: model.train_on_batch(images, labels)
