"""Trains a tiny ViT through `fit` on one device and on logical CPUs, feature by feature.

python tests/replica_runs.py REPLICAS [plain]

51 examples at batch 16, so the last batch is short, uneven, and may leave a replica without any.
The last line is JSON: for each feature the largest difference in losses, accuracies and weights,
or the error's name. With `plain`, a plain keras.Model trains: on 2 replicas all features differ.
"""

import contextlib
import json
import sys

import keras
import numpy as np
import tensorflow as tf
from conftest import TINY

import vitkeras as vk
from vitkeras import training

FEATURES = {
    "plain": {},
    "clipping": {"clip_norm": 0.05},
    "accumulation": {"accumulation_steps": 2},
    "accumulation, clipping": {"accumulation_steps": 2, "clip_norm": 0.05},
    "ema": {"ema_momentum": 0.9},
    "steps_per_execution": {"steps_per_execution": 3},
    "label smoothing": {"smoothing": 0.1},
    "mixed_bfloat16": {"dtype": "mixed_bfloat16"},
}
SAME_NUMBERS = ("accumulation_steps", "steps_per_execution")  # as one device without them
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(51, 8, 8, 3)).astype("float32")
LABELS = RNG.integers(0, 5, 51)


def train(strategy, plain, smoothing=0.0, dtype="float32", **options):
    """Returns losses, accuracies, the evaluation and the weights, as one vector."""
    keras.utils.set_random_seed(0)
    compiling = {key: options.pop(key) for key in SAME_NUMBERS if key in options}
    with strategy.scope() if strategy else contextlib.nullcontext():
        model = vk.vit("Ti/4", image_size=8, num_classes=5, dtype=dtype, **TINY)
        if plain:
            model = keras.Model(model.inputs, model.outputs)
        optimizer = training.make_optimizer(
            "sgd", 0.1, weight_decay=0.01, variables=model.trainable_variables, **options
        )
        if plain and "accumulation_steps" in compiling:
            optimizer.gradient_accumulation_steps = compiling.pop("accumulation_steps")
        loss = training.SmoothedCrossEntropy(smoothing)
        model.compile(optimizer, loss, metrics=["accuracy"], **compiling)
    batches = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(16)
    history = model.fit(batches, epochs=3, verbose=0).history
    numbers = history["loss"] + history["accuracy"] + list(model.evaluate(batches, verbose=0))
    return np.concatenate([numbers] + [w.ravel() for w in model.get_weights()])


def main():
    """Compares."""
    replicas, plain = int(sys.argv[1]), "plain" in sys.argv[2:]
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * replicas,
    )
    mirrored = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(replicas)])
    result = {}
    for feature, options in FEATURES.items():
        try:
            reference = {k: v for k, v in options.items() if k not in SAME_NUMBERS}
            expected = train(None, plain, **reference)
            result[feature] = float(np.abs(expected - train(mirrored, plain, **options)).max())
        except Exception as error:  # plain Keras fails in several ways; the test looks at which
            if not plain:
                raise
            result[feature] = type(error).__name__
    print(json.dumps(result))


if __name__ == "__main__":
    main()
