"""Batches that do not divide by the replicas, and models that users build on a backbone."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.models import TINY
from helpers.processes import ROOT, python

import vitkeras as vk
from vitkeras.errors import InputError

SCRIPT = ROOT / "tests/helpers/shard_runs.py"


def train(replicas, folder, *cases):
    """Returns the results of cases of `shard_runs.py`."""
    done = python(SCRIPT, replicas, folder / f"{replicas}.npz", *cases, timeout=1200)
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(folder / f"{replicas}.npz") as file:
        return dict(file)


#: Batches of 15 have equal shards here, unlike on two replicas.
THREE_REPLICAS = (
    "uneven", "short first batch", "accumulation", "steps_per_execution", "two outputs",
)  # fmt: skip


@pytest.mark.slow
def test_every_case_equals_one_device(tmp_path):
    expected = train(1, tmp_path)
    for replicas, cases in ((2, ()), (3, THREE_REPLICAS)):
        actual = train(replicas, tmp_path, *cases)
        assert len(actual) == 4 * len(cases) if cases else actual.keys() == expected.keys()
        for key, value in actual.items():
            assert np.abs(value - expected[key]).max() < 2e-5, (replicas, key)


ON_TWO_REPLICAS = """
import warnings, keras, numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import vitkeras as vk

class AddSum(keras.layers.Layer):
    def call(self, x):
        self.add_loss(keras.ops.sum(keras.ops.square(x)))
        return x

x, y = np.ones((4, 8, 8, 3), "float32"), np.zeros(4)
crossentropy = keras.losses.SparseCategoricalCrossentropy
dense, norm = keras.layers.Dense, keras.layers.BatchNormalization

def attempt(layers=(), kind=vk.Model, loss=crossentropy(from_logits=True), **optimizer):
    base = vk.vit("Ti/4", image_size=8, include_top=False, hidden_dim=24, mlp_dim=48, num_heads=3,
                  num_layers=1)
    out = base.output
    for layer in (*layers, dense(3)):
        out = layer(out)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model = kind(base.input, out)
            model.compile(keras.optimizers.SGD(0.1, **optimizer), loss)
            model.fit(x, y, batch_size=4, verbose=0)
        except ValueError as error:
            print("refused:", str(error).splitlines()[0])
            return
    texts = [str(each.message) for each in caught if "number of replicas" in str(each.message)]
    print("warned:", *texts[:1])

with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    attempt()
    attempt(loss=crossentropy(from_logits=True, reduction="sum"))
    attempt(loss=crossentropy(from_logits=True, reduction="mean_with_sample_weight"))
    attempt(loss=lambda y, p: keras.ops.mean(keras.ops.square(p)))
    attempt([AddSum()])
    attempt(use_ema=True, ema_overwrite_frequency=2)
    attempt([norm()])
    attempt([norm(synchronized=True)])
    attempt(kind=keras.Model)
    attempt(kind=lambda i, o: keras.Sequential([keras.Model(i, o)]))
"""


def test_what_depends_on_the_replicas_is_refused_or_warned_of():
    done = python("-c", ON_TWO_REPLICAS)
    lines = done.stdout.splitlines()
    expected = [
        "warned:$", "refused:.*'sum'", "refused:.*'mean_with_sample_weight'",
        "refused: A loss function must return one value per example", "refused: .*`add_loss`",
        "refused: `ema_overwrite_frequency`", "warned: BatchNormalization", "warned:$",
        r"warned: Functional .*vitkeras\.Model", r"warned: Sequential .*vitkeras\.Model",
    ]  # fmt: skip
    assert len(lines) == len(expected), done.stderr[-2000:]
    for line, pattern in zip(lines, expected, strict=True):
        assert re.match(pattern, line.strip()), (line, pattern)


def small(**options):
    return vk.vit("Ti/4", image_size=8, num_classes=3, **TINY, **options)


CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
X, Y = np.ones((4, 8, 8, 3), "float32"), np.arange(4) % 3


@pytest.mark.parametrize("run_eagerly, steps_per_execution", [(True, 1), (False, 2)])
def test_train_step_of_a_subclass(run_eagerly, steps_per_execution):
    class Extends(vk.Model):
        def train_step(self, data):
            return {**super().train_step(data), "seven": 7.0}

        def test_step(self, data):
            return {**super().test_step(data), "eight": tf.constant(8.0)}

    class Replaces(vk.Model):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = self.compute_loss(y=y, y_pred=self(x, training=True))
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply(gradients, self.trainable_variables)
            return {"loss": loss, "norm": tf.linalg.global_norm(gradients)}

    class Measures(vk.Model):
        def compute_metrics(self, x, y, y_pred, sample_weight=None):
            return {**super().compute_metrics(x, y, y_pred, sample_weight), "nine": 9.0}

    base = small()
    options = {"run_eagerly": run_eagerly, "steps_per_execution": steps_per_execution}
    for kind, names in (
        (Extends, {"loss", "accuracy", "seven", "val_loss", "val_accuracy", "val_eight"}),
        (Measures, {"loss", "accuracy", "nine", "val_loss", "val_accuracy", "val_nine"}),
    ):
        model = kind(base.inputs, base.outputs)
        model.compile("sgd", CROSSENTROPY, metrics=["accuracy"], **options)
        history = model.fit(X, Y, batch_size=2, validation_data=(X, Y), verbose=0).history
        assert set(history) == names and history["loss"][0] > 0
        result = model.evaluate(X, Y, batch_size=2, verbose=0, return_dict=True)
        assert np.isclose(result["loss"], history["val_loss"][0])
    model = Replaces(base.inputs, base.outputs)
    model.compile("sgd", CROSSENTROPY, **options)
    history = model.fit(X, Y, batch_size=2, verbose=0).history
    assert set(history) == {"loss", "norm"} and history["loss"][0] > 0


def test_float16_scales_the_loss_as_keras_does(tmp_path):
    model = small(dtype="mixed_float16")
    model.compile("adam", CROSSENTROPY)
    assert type(model.optimizer) is keras.optimizers.LossScaleOptimizer
    model.fit(X, Y, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded.optimizer) is keras.optimizers.LossScaleOptimizer
    assert type(loaded.optimizer.inner_optimizer) is keras.optimizers.Adam
    model.compile("adam", CROSSENTROPY, auto_scale_loss=False)
    assert type(model.optimizer) is keras.optimizers.Adam
    bfloat16 = small(dtype="mixed_bfloat16")
    bfloat16.compile("adam", CROSSENTROPY)
    assert type(bfloat16.optimizer) is keras.optimizers.Adam


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_frozen_model_warns_and_measures(accumulation_steps):
    model = small()
    model.trainable = False
    model.compile("sgd", CROSSENTROPY, accumulation_steps=accumulation_steps)
    with pytest.warns(UserWarning, match="not have any trainable weights"):
        history = model.fit(X, Y, verbose=0).history
    assert history["loss"][0] > 0


def test_scalar_losses_are_refused_with_microbatches_only():
    def scalar(y, p):
        return keras.ops.mean(keras.ops.square(p))

    model = small()
    model.compile("sgd", scalar)
    model.fit(X, Y, verbose=0)
    model.compile("sgd", scalar, accumulation_steps=2)
    with pytest.raises(InputError, match="one value per example"):
        model.fit(X, Y, verbose=0)
    loss = keras.losses.SparseCategoricalCrossentropy(reduction="sum")
    model.compile("sgd", loss)
    with pytest.raises(InputError, match="reduction='sum'"):
        model.compile("sgd", loss, accumulation_steps=2)


def test_microbatches_of_different_sizes():
    weights = []
    for accumulation_steps in (1, 3):
        keras.utils.set_random_seed(0)
        model = small()
        model.compile("sgd", CROSSENTROPY, accumulation_steps=accumulation_steps)
        model.fit(X, Y, verbose=0, shuffle=False)
        weights.append(model.get_weights())
    for one, other in zip(*weights, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
