import json

import keras
import numpy as np
import pytest
from conftest import ROOT, TINY, python

import vitkeras as vk
from vitkeras import exact, training
from vitkeras.errors import InputError
from vitkeras.layers import Dropout


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [2, 4])
def test_replicas_give_the_numbers_of_one_device(replicas):
    done = python(ROOT / "tests" / "replica_runs.py", replicas, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    differences = json.loads(done.stdout.splitlines()[-1])
    print(f"{replicas} replicas against one device: {differences}")
    for feature, difference in differences.items():
        # Half of bfloat16's 8 bits, carried through 12 updates.
        assert difference < (3e-2 if feature == "mixed_bfloat16" else 1e-5), feature


def test_keras_still_has_what_exact_needs():
    model = vk.vit("Ti/4", image_size=8, num_classes=3, **TINY)
    model.compile("sgd", "sparse_categorical_crossentropy")
    for name in exact.PRIVATE["model"]:
        assert hasattr(model, name), f"Keras has no Model.{name} any more; see vitkeras/exact.py"
    for name in exact.PRIVATE["optimizer"]:
        assert hasattr(model.optimizer, name), f"Keras optimizers have no {name}; see exact.py"


def test_a_reloaded_model_keeps_its_accumulation_and_what_does_not_decay(tmp_path):
    model = vk.vit("Ti/4", image_size=8, num_classes=3, **TINY)
    optimizer = training.make_optimizer("sgd", 0.5, 0.1, variables=model.trainable_variables)
    optimizer.build(model.trainable_variables)
    model.compile(optimizer, training.SmoothedCrossEntropy(), accumulation_steps=2)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded) is type(model) and loaded.accumulation_steps == 2
    decay = [v.path for v in loaded.trainable_variables if loaded.optimizer._use_weight_decay(v)]
    assert decay and all(path.endswith("/kernel") for path in decay)


def test_what_cannot_be_exact_is_refused():
    model = vk.vit("Ti/4", image_size=8, num_classes=3, **TINY)
    with pytest.raises(InputError, match="compile\\(..., accumulation_steps=2\\) cuts"):
        model.compile(keras.optimizers.SGD(gradient_accumulation_steps=2), "mse")
    with pytest.raises(InputError, match="accumulation_steps=0"):
        model.compile("sgd", "mse", accumulation_steps=0)


@pytest.mark.parametrize("steps", [None, 4])
def test_an_execution_never_runs_past_its_epoch_nor_cuts_validation(steps):
    import tensorflow as tf

    model = vk.vit("Ti/4", image_size=8, num_classes=3, **TINY)
    model.compile(
        "sgd", training.SmoothedCrossEntropy(), metrics=["accuracy"], steps_per_execution=3
    )
    images = np.random.default_rng(0).normal(size=(20, 8, 8, 3)).astype("float32")
    labels = np.arange(20) % 3
    data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(2)
    endless = data.repeat() if steps else data
    history = model.fit(
        endless, epochs=2, steps_per_epoch=steps, validation_data=data, shuffle=False, verbose=0
    ).history
    assert int(model.optimizer.iterations) == 2 * (steps or 10)
    whole = model.evaluate(images, labels, batch_size=20, verbose=0)
    np.testing.assert_allclose(history["val_loss"][-1], whole[0], rtol=1e-5)


def test_replicas_draw_masks_of_their_own():
    code = """
import numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
from vitkeras.layers import Dropout, StochasticDepth
for make in (Dropout, StochasticDepth):
    with strategy.scope():
        layer = make(0.5, seed=1)
    run = tf.function(lambda: strategy.run(lambda: layer(tf.ones((64, 4)), training=True)))
    one, two = (x.numpy() for x in strategy.experimental_local_results(run()))
    alone = make(0.5, seed=1)(tf.ones((64, 4)), training=True).numpy()
    assert not np.array_equal(one, two), make
    assert np.array_equal(one, alone), make
"""
    done = python("-c", code)
    assert done.returncode == 0, done.stderr[-2000:]


def test_dropout_draws_what_keras_draws():
    x = np.ones((8, 8), "float32")
    ours, theirs = Dropout(0.5, seed=3), keras.layers.Dropout(0.5, seed=3)
    for _ in range(2):
        np.testing.assert_array_equal(ours(x, training=True), theirs(x, training=True))
