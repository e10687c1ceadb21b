import importlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.models import TINY
from helpers.processes import ROOT, finish_hosts, python, start_hosts

import vitkeras as vk
from vitkeras import keras_internals, training
from vitkeras.errors import InputError
from vitkeras.layers.regularization import Dropout
from vitkeras.trainers import shards
from vitkeras.trainers import tensorflow as trainer

loss_module = importlib.import_module("keras.src.losses.loss")

# Replicas, two processes with one replica each, or an emulated TPUStrategy with two cores.
SETUPS = ("1", "2", "4", "hosts", "tpu2")
#: Setups that take long for what they add to the others train with a part of the features.
FEATURES = {
    "1": ("accumulation, clipping", "steps_per_execution"),
    "4": ("accumulation, clipping", "EMA", "mixed_bfloat16"),
}


def tiny_model():
    return vk.vit("Ti/4", image_size=8, num_classes=3, include_rescaling=False, **TINY)


def random_images(count):
    return np.random.default_rng(0).normal(size=(count, 8, 8, 3)).astype("float32")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Results of `replica_runs.py` for the reference and each setup."""
    folder = tmp_path_factory.mktemp("replicas")
    script = ROOT / "tests/helpers/replica_runs.py"
    for setup in ("reference", "full_reference", "1", "2", "4", "tpu2"):
        features = FEATURES.get(setup, ())
        done = python(script, setup, folder / f"{setup}.npz", *features, timeout=1800)
        assert done.returncode == 0, done.stderr[-2000:]
    hosts = start_hosts(2, script, "hosts", folder / "hosts{host}.npz")
    for code, _, error in finish_hosts(hosts, timeout=1800):
        assert code == 0, error[-2000:]
    (folder / "hosts0.npz").rename(folder / "hosts.npz")
    return {
        setup: dict(np.load(folder / f"{setup}.npz"))
        for setup in ("reference", "full_reference", *SETUPS, "hosts1")
    }


@pytest.mark.slow
def test_every_setup_equals_one_device(results, capsys):
    def difference(setup, feature, what):
        reference = "full_reference" if setup == "tpu2" else "reference"
        expected, actual = (results[s][f"{feature}/{what}"] for s in (reference, setup))
        return float(np.abs(expected - actual).max())

    features = list(dict.fromkeys(key.split("/")[0] for key in results["reference"]))
    assert len(features) == 9
    with capsys.disabled():
        titles = ("1 device", "2 replicas", "4 replicas", "2 hosts", "TPUStrategy (emulated)")
        print(f"\n| largest difference | {' | '.join(titles)} |\n|{'---|' * (len(titles) + 1)}")
        for feature in features:
            largest = [
                f"{max(difference(s, feature, 'losses'), difference(s, feature, 'weights')):.1e}"
                if f"{feature}/losses" in results[s]
                else ""
                for s in SETUPS
            ]
            print(f"| {feature} | {' | '.join(largest)} |")
    for feature in features:
        is_bfloat16 = feature == "mixed_bfloat16"
        for setup in (*SETUPS, "hosts1"):
            if feature not in FEATURES.get(setup, features):
                continue
            same = ("losses", "weights")
            if not is_bfloat16 and results["reference"][f"{feature}/results"].size:
                same += ("results",)  # predicted labels, probabilities, losses of the examples
            for what in same:
                # The rounding of bfloat16 depends on the CPU; Keras itself differs by 0.1 or more.
                bound = 4e-2 if is_bfloat16 else 1e-5
                assert difference(setup, feature, what) < bound, (setup, feature, what)
            # In bfloat16, rounding may change the predicted class of an example.
            bound = 1.01 / 48 if is_bfloat16 else 1e-6
            assert difference(setup, feature, "accuracies") < bound, (setup, feature)


def test_a_step_is_traced_once(monkeypatch):
    traced, train_step = [], trainer.ReplicaConsistentModel.train_step

    def counted(self, data):
        traced.append(1)
        return train_step(self, data)

    counted.__name__ = "train_step"
    monkeypatch.setattr(trainer.ReplicaConsistentModel, "train_step", counted)
    model = tiny_model()
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(random_images(8), np.zeros(8), batch_size=4, epochs=2, verbose=0)
    assert len(traced) == 1


def test_keras_has_the_non_public_names():
    model = tiny_model()
    optimizer = keras.optimizers.SGD(use_ema=True)
    optimizer.build(model.trainable_variables)
    model.compile(optimizer, "sparse_categorical_crossentropy")
    iterators, build = [], model._maybe_symbolic_build
    model._maybe_symbolic_build = lambda iterator: (iterators.append(iterator), build(iterator))
    model.fit(np.zeros((2, 8, 8, 3)), np.zeros(2), verbose=0)
    owners = {
        "model": model, "optimizer": optimizer, "iterator": iterators[0], "losses": loss_module,
    }  # fmt: skip
    assert set(owners) == set(keras_internals.NAMES)
    for owner, names in keras_internals.NAMES.items():
        for name in names:
            assert hasattr(owners[owner], name), (
                f"Keras {keras.__version__} has no {name} on its {owner}, which "
                "vitkeras/keras_internals.py needs."
            )


def test_loaded_model_keeps_accumulation_and_weight_decay_exclusions(tmp_path):
    model = tiny_model()
    optimizer = training.make_optimizer("sgd", 0.5, 0.1, variables=model.trainable_variables)
    optimizer.build(model.trainable_variables)
    model.compile(optimizer, training.SmoothedCrossEntropy(), accumulation_steps=2)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded) is type(model) and loaded.accumulation_steps == 2
    decay = [
        v.path
        for v in loaded.trainable_variables
        if keras_internals.uses_weight_decay(loaded.optimizer, v)
    ]
    assert decay and all(path.endswith("/kernel") for path in decay)


def test_invalid_accumulation():
    model = tiny_model()
    with pytest.raises(InputError, match="gradient_accumulation_steps=2.*, accumulation_steps=2"):
        model.compile(keras.optimizers.SGD(gradient_accumulation_steps=2), "mse")
    for steps in (0, 1.5):
        with pytest.raises(InputError, match=f"`accumulation_steps` .*={steps}"):
            model.compile("sgd", "mse", accumulation_steps=steps)


@pytest.mark.parametrize("steps", [None, 4])
def test_execution_ends_with_the_epoch_and_validation_is_complete(steps):
    model = tiny_model()
    model.compile(
        "sgd", training.SmoothedCrossEntropy(), metrics=["accuracy"], steps_per_execution=3
    )
    images, labels = random_images(20), np.arange(20) % 3
    data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(2)
    endless = data.repeat() if steps else data
    history = model.fit(
        endless, epochs=2, steps_per_epoch=steps, validation_data=data, shuffle=False, verbose=0
    ).history
    assert int(model.optimizer.iterations) == 2 * (steps or 10)
    loss, _ = model.evaluate(images, labels, batch_size=20, verbose=0)
    np.testing.assert_allclose(history["val_loss"][-1], loss, rtol=1e-5)


def test_replicas_draw_different_masks():
    code = """
import numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
from vitkeras.layers.regularization import Dropout, StochasticDepth
for make in (Dropout, StochasticDepth):
    with strategy.scope():
        layer = make(0.5, seed=1)
    run = tf.function(lambda: strategy.run(lambda: layer(tf.ones((64, 4)), training=True)))
    one, two = (x.numpy() for x in strategy.experimental_local_results(run()))
    single = make(0.5, seed=1)(tf.ones((64, 4)), training=True).numpy()
    assert not np.array_equal(one, two), make
    assert np.array_equal(one, single), make
"""
    done = python("-c", code)
    assert done.returncode == 0, done.stderr[-2000:]


def test_dropout_equals_that_of_keras():
    x = np.ones((8, 8), "float32")
    layer, expected = Dropout(0.5, seed=3), keras.layers.Dropout(0.5, seed=3)
    for _ in range(2):
        np.testing.assert_array_equal(layer(x, training=True), expected(x, training=True))


def test_batches_that_a_tpu_cannot_process_are_refused(monkeypatch):
    model = tiny_model()
    model.compile("sgd", training.SmoothedCrossEntropy(), run_eagerly=True)
    monkeypatch.setattr(trainer, "is_tpu", lambda strategy: True)
    monkeypatch.setattr(trainer, "is_distributed", lambda strategy: True)
    images, labels = np.zeros((6, 8, 8, 3), "float32"), np.zeros(6, "int32")
    data = tf.data.Dataset.from_tensor_slices((images, labels))
    with pytest.raises(InputError, match=r"shape \(None, 8, 8, 3\).*drop_remainder=True"):
        model.fit(data.batch(4), shuffle=False, verbose=0)
    with pytest.raises(InputError, match="drop_remainder=True"):
        model.evaluate(data.batch(4), verbose=0)
    with pytest.raises(InputError, match=r"shape \(4,\), string"):
        shards.check_tpu_batches((tf.TensorSpec((4, 2)), tf.TensorSpec((4,), tf.string)))
    model.fit(data.batch(3, drop_remainder=True), verbose=0, shuffle=False)


def test_model_and_optimizer_outside_the_scope_are_refused():
    code = """
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import vitkeras as vk
model = vk.vit("Ti/4", image_size=8, num_classes=2, num_layers=1)
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    try:
        model.compile("sgd", "mse")
    except ValueError as error:
        print(error)
import keras
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    model = vk.vit("Ti/4", image_size=8, num_classes=2, num_layers=1)
try:
    model.compile(keras.optimizers.SGD(0.1), "mse")
except ValueError as error:
    print(error)
model.compile("sgd", "mse")  # creates the optimizer in the scope
print(type(model.optimizer._distribution_strategy).__name__)
"""
    done = python("-c", code)
    lines = done.stdout.splitlines()
    assert len(lines) == 3, done.stderr[-2000:]
    assert "A model must be made in the scope" in lines[0]
    assert "An optimizer must be made in the scope" in lines[1]
    assert lines[2] == "MirroredStrategy"


def test_first_step_skips_the_steps_before_it():
    model = tiny_model()
    model.compile("sgd", training.SmoothedCrossEntropy(), steps_per_execution=2)
    data = tf.data.Dataset.from_tensor_slices((random_images(14), np.arange(14) % 3)).batch(2)
    model.fit(data, epochs=2, steps_per_epoch=5, first_step=3, shuffle=False, verbose=0)
    assert int(model.optimizer.iterations) == 2 + 5
