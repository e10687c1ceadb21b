"""Trains a tiny ViT through `fit` and `evaluate`, feature by feature, in one of several places.

python tests/replica_runs.py PLACE OUT.npz [plain]

PLACE: 1, 2 or 4 logical CPUs, or `hosts` for one of those that TF_CONFIG names. `reference` is one
device on which accumulation and steps_per_execution, which must change no number, are left out.
With `plain`, a plain keras.Model trains, for what Keras does by itself.

51 examples at batch 16, so the last batch is short, uneven, and may leave a replica without any.
OUT gets for each feature FEATURE/losses, /accuracies and /weights, or FEATURE/error.
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
from vitkeras.evaluation import make_evaluator

FEATURES = {
    "plain": {},
    "clipping": {"clip_norm": 0.05},
    "accumulation": {"accumulation_steps": 2},
    "accumulation, clipping": {"accumulation_steps": 2, "clip_norm": 0.05},
    "EMA": {"ema_momentum": 0.9},
    "steps_per_execution": {"steps_per_execution": 3},
    "label smoothing": {"smoothing": 0.1},
    "mixed_bfloat16": {"dtype": "mixed_bfloat16"},
}
SAME_NUMBERS = ("accumulation_steps", "steps_per_execution")  # as one device without them
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(51, 8, 8, 3)).astype("float32")
LABELS = RNG.integers(0, 5, 51)


def padded(batch_size):
    """Whole batches with weights, as `evaluation_batches` makes them."""
    padding = -len(IMAGES) % batch_size
    columns = (
        np.concatenate([IMAGES, np.zeros((padding, 8, 8, 3), "float32")]),
        np.concatenate([LABELS, np.zeros(padding, int)]).astype("int32"),
        np.repeat([1.0, 0.0], [len(IMAGES), padding]).astype("float32"),
    )
    return tf.data.Dataset.from_tensor_slices(columns).batch(batch_size)


def train(strategy, plain, smoothing=0.0, dtype="float32", **options):
    """Returns losses, accuracies and weights."""
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
        evaluate = make_evaluator(model)
    batches = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(16)
    history = model.fit(batches, epochs=3, verbose=0).history
    keras_says = model.evaluate(batches, verbose=0, return_dict=True)
    we_say = [evaluate(padded(batch_size)) for batch_size in (8, 20)]
    assert [said["examples"] for said in we_say] == [len(IMAGES)] * 2
    every = [keras_says, *we_say]
    return {
        "losses": np.array(history["loss"] + [said["loss"] for said in every]),
        "accuracies": np.array(history["accuracy"] + [said["accuracy"] for said in every]),
        "weights": np.concatenate([w.ravel() for w in model.get_weights()]),
    }


def make_strategy(place):
    """Returns the strategy of a place, None for one device."""
    if place == "hosts":
        return training.make_strategy("multi_worker")
    if place in ("1", "reference"):
        return None
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * int(place),
    )
    return training.make_strategy("mirrored")


def main():
    """Trains with each feature."""
    place, out, plain = sys.argv[1], sys.argv[2], "plain" in sys.argv[3:]
    strategy = make_strategy(place)
    result = {}
    for feature, options in FEATURES.items():
        if place == "reference":
            options = {k: v for k, v in options.items() if k not in SAME_NUMBERS}
        try:
            numbers = train(strategy, plain, **options)
            result |= {f"{feature}/{name}": value for name, value in numbers.items()}
        except Exception as error:  # plain Keras fails in several ways; the table says how
            if not plain:
                raise
            result[f"{feature}/error"] = type(error).__name__
    np.savez(out, **result)
    print(json.dumps({"features": len(FEATURES)}))


if __name__ == "__main__":
    main()
