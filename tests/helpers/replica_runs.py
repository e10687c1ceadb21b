"""Trains a tiny ViT with `fit` and `evaluate`, feature by feature, on one of several setups.

python tests/helpers/replica_runs.py SETUP OUT.npz [plain] [FEATURE ...]

SETUP: 1, 2 or 4 logical CPUs, `hosts` for one of the hosts in TF_CONFIG, or `tpu2` or `tpu8` for
the emulated TPUStrategy. `reference` is one device without accumulation_steps and
steps_per_execution, which change results only by rounding. With `plain`, a plain keras.Model
trains, to show what Keras does.

51 examples at batch size 17, which no number of replicas divides. TPUs train on 48 of them at batch
size 16; `full_reference` is one device that does. With `plain`, the batch size is 16 and the last
batch is short: Keras fails if the first batch does not divide.
OUT has FEATURE/losses, /accuracies and /weights for each feature, or FEATURE/error, and
FEATURE/results, the results of the examples, for features that evaluation depends on.
"""

import contextlib
import json
import sys

import keras
import numpy as np
import tensorflow as tf

import vitkeras as vk
from helpers.emulated_tpu import emulated_tpu_strategy
from helpers.models import TINY
from vitkeras import training
from vitkeras.evaluation.metrics import ExampleResults, make_evaluator, make_example_evaluator
from vitkeras.training import strategy as strategies
from vitkeras.training.losses import LOSSES

FEATURES = {
    "SGD with momentum": {},
    "clipping": {"clip_norm": 0.05},
    "accumulation": {"accumulation_steps": 2},
    "accumulation, clipping": {"accumulation_steps": 2, "clip_norm": 0.05},
    "EMA": {"ema_momentum": 0.9},
    "steps_per_execution": {"steps_per_execution": 3},
    "label smoothing": {"smoothing": 0.1},
    "class weights, sigmoid loss": {"accumulation_steps": 2, "loss": "sigmoid"},
    "mixed_bfloat16": {"dtype": "mixed_bfloat16"},
}
SMALL = {**TINY, "num_layers": 1}
#: Features that evaluation does not depend on: one evaluation is enough.
OF_TRAINING = ("clipping", "accumulation", "accumulation, clipping")
ONLY_ROUNDING = ("accumulation_steps", "steps_per_execution")  # left out in the reference
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(51, 8, 8, 3)).astype("float32")
LABELS = RNG.integers(0, 5, 51)


def padded_batches(batch_size):
    """Full batches with weights, as `evaluation_batches` makes them."""
    padding = -len(IMAGES) % batch_size
    columns = (
        np.concatenate([IMAGES, np.zeros((padding, 8, 8, 3), "float32")]),
        np.concatenate([LABELS, np.zeros(padding, int)]).astype("int32"),
        np.repeat([1.0, 0.0], [len(IMAGES), padding]).astype("float32"),
    )
    return tf.data.Dataset.from_tensor_slices(columns).batch(batch_size, drop_remainder=True)


def train(
    strategy, plain, full, batch_sizes, smoothing=0.0, loss="softmax", dtype="float32", **options
):
    """Returns losses, accuracies, weights; evaluates also in padded batches of some sizes."""
    keras.utils.set_random_seed(0)
    compile_options = {key: options.pop(key) for key in ONLY_ROUNDING if key in options}
    with strategy.scope() if strategy else contextlib.nullcontext():
        model = vk.vit(
            "Ti/4", image_size=8, num_classes=5, include_rescaling=False, dtype=dtype, **SMALL
        )
        if plain:
            model = keras.Model(model.inputs, model.outputs)
        optimizer = training.make_optimizer(
            "sgd", 0.1, weight_decay=0.01, variables=model.trainable_variables, **options
        )
        if plain and "accumulation_steps" in compile_options:
            optimizer.gradient_accumulation_steps = compile_options.pop("accumulation_steps")
        class_weights = [0.1, 0.5, 1, 2, 4] if loss == "sigmoid" else None
        model.compile(
            optimizer, LOSSES[loss](smoothing, class_weights), metrics=["accuracy"],
            jit_compile=False, **compile_options,
        )  # fmt: skip
        evaluate = make_evaluator(model, loss)
        evaluate_examples = make_example_evaluator(model, loss)
    batch_size = 16 if full or plain else 17
    batches = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS))
    batches = batches.batch(batch_size, drop_remainder=full)
    history = model.fit(batches, epochs=3, verbose=0).history
    evaluations = [
        model.evaluate(batches, verbose=0, return_dict=True),
        *(evaluate(padded_batches(batch_size)) for batch_size in batch_sizes),
    ]
    assert all(result["examples"] == len(IMAGES) for result in evaluations[1:])
    results = [
        ExampleResults.concatenate(evaluate_examples(padded_batches(size))) for size in batch_sizes
    ]
    assert all(each.labels.tolist() == LABELS.tolist() for each in results)
    return {
        "results": np.array([each[1:5] for each in results]),
        "losses": np.array(history["loss"] + [result["loss"] for result in evaluations]),
        "accuracies": np.array(
            history["accuracy"] + [result["accuracy"] for result in evaluations]
        ),
        "weights": np.concatenate([w.ravel() for w in model.get_weights()]),
    }


def make_strategy(setup):
    """Returns the strategy of a setup, None for one device."""
    if setup == "hosts":
        return strategies.make_strategy("multi_worker")
    if setup in ("1", "reference", "full_reference"):
        return None
    if setup.startswith("tpu"):
        return emulated_tpu_strategy(int(setup.removeprefix("tpu")))
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * int(setup),
    )
    return strategies.make_strategy("mirrored")


def main():
    """Trains with each feature."""
    setup, out, plain = sys.argv[1], sys.argv[2], "plain" in sys.argv[3:]
    features = [each for each in sys.argv[3:] if each != "plain"] or list(FEATURES)
    strategy = make_strategy(setup)
    results = {}
    for feature in features:
        options = FEATURES[feature]
        if setup in ("reference", "full_reference"):
            options = {k: v for k, v in options.items() if k not in ONLY_ROUNDING}
        try:
            full = setup.startswith(("tpu", "full"))
            batch_sizes = () if feature in OF_TRAINING else (8, 24) if full else (7, 20)
            result = train(strategy, plain, full, batch_sizes, **options)
            results |= {f"{feature}/{name}": value for name, value in result.items()}
        except Exception as error:  # a plain Keras model fails in several ways, which OUT records
            if not plain:
                raise
            results[f"{feature}/error"] = type(error).__name__
    np.savez(out, **results)
    print(json.dumps({"features": len(features)}))


if __name__ == "__main__":
    main()
