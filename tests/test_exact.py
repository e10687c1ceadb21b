import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, TINY, finish_hosts, python, start_hosts

import vitkeras as vk
from vitkeras import exact, private, training
from vitkeras.dropping import Dropout
from vitkeras.errors import InputError

PLACES = ("1", "2", "4", "hosts")  # replicas, or two processes with a replica each


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    """What `replica_runs.py` gives in each place and for the reference."""
    folder = tmp_path_factory.mktemp("replicas")
    script = ROOT / "tests" / "replica_runs.py"
    for place in ("reference", "1", "2", "4"):
        done = python(script, place, folder / f"{place}.npz", timeout=1800)
        assert done.returncode == 0, done.stderr[-2000:]
    hosts = start_hosts(2, script, "hosts", folder / "hosts{host}.npz")
    for code, _, error in finish_hosts(hosts, timeout=1800):
        assert code == 0, error[-2000:]
    (folder / "hosts0.npz").rename(folder / "hosts.npz")
    return {
        place: dict(np.load(folder / f"{place}.npz")) for place in ("reference", *PLACES, "hosts1")
    }


@pytest.mark.slow
def test_every_place_gives_the_numbers_of_one_device(numbers, capsys):
    def difference(place, feature, what):
        expected, got = (numbers[p][f"{feature}/{what}"] for p in ("reference", place))
        return float(np.abs(expected - got).max())

    features = list(dict.fromkeys(key.split("/")[0] for key in numbers["reference"]))
    assert len(features) == 8
    with capsys.disabled():
        print("\n| largest difference | 1 device | 2 replicas | 4 replicas | 2 hosts |")
        print("|---|---|---|---|---|")
        for feature in features:
            worst = [
                max(difference(p, feature, "losses"), difference(p, feature, "weights"))
                for p in PLACES
            ]
            print(f"| {feature} | " + " | ".join(f"{cell:.1e}" for cell in worst) + " |")
    for feature in features:
        low = feature == "mixed_bfloat16"
        for place in (*PLACES, "hosts1"):
            for what in ("losses", "weights"):
                bound = 1e-2 if low else 1e-5
                assert difference(place, feature, what) < bound, (place, feature, what)
            # A rounding may decide an example, in 8 bits.
            bound = 1.01 / 51 if low else 1e-6
            assert difference(place, feature, "accuracies") < bound, (place, feature)


def test_keras_still_has_what_is_not_public():
    model = vk.vit("Ti/4", image_size=8, num_classes=3, **TINY)
    optimizer = keras.optimizers.SGD(use_ema=True)
    optimizer.build(model.trainable_variables)
    model.compile(optimizer, "sparse_categorical_crossentropy")
    iterators = []
    build = model._maybe_symbolic_build
    model._maybe_symbolic_build = lambda iterator: (iterators.append(iterator), build(iterator))
    model.fit(np.zeros((2, 8, 8, 3)), np.zeros(2), verbose=0)
    owners = {"model": model, "optimizer": optimizer, "iterator": iterators[0]}
    assert set(owners) == set(private.PRIVATE)
    for owner, names in private.PRIVATE.items():
        for name in names:
            assert hasattr(owners[owner], name), (
                f"Keras {keras.__version__} has no {name} on its {owner} any more, which "
                "vitkeras needs: see vitkeras/private.py"
            )


def test_a_reloaded_model_keeps_its_accumulation_and_what_does_not_decay(tmp_path):
    model = vk.vit("Ti/4", image_size=8, num_classes=3, **TINY)
    optimizer = training.make_optimizer("sgd", 0.5, 0.1, variables=model.trainable_variables)
    optimizer.build(model.trainable_variables)
    model.compile(optimizer, training.SmoothedCrossEntropy(), accumulation_steps=2)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded) is type(model) and loaded.accumulation_steps == 2
    decay = [v.path for v in loaded.trainable_variables if private.decays(loaded.optimizer, v)]
    assert decay and all(path.endswith("/kernel") for path in decay)


def test_what_cannot_be_exact_is_refused():
    model = vk.vit("Ti/4", image_size=8, num_classes=3, **TINY)
    with pytest.raises(InputError, match="compile\\(..., accumulation_steps=2\\) cuts"):
        model.compile(keras.optimizers.SGD(gradient_accumulation_steps=2), "mse")
    with pytest.raises(InputError, match="accumulation_steps=0"):
        model.compile("sgd", "mse", accumulation_steps=0)


@pytest.mark.parametrize("steps", [None, 4])
def test_an_execution_never_runs_past_its_epoch_nor_cuts_validation(steps):
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
from vitkeras.dropping import Dropout, StochasticDepth
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


def test_a_tpu_gets_no_batch_that_it_cannot_take(monkeypatch):
    model = vk.vit("Ti/4", image_size=8, num_classes=3, **TINY)
    model.compile("sgd", training.SmoothedCrossEntropy())
    monkeypatch.setattr(exact, "_is_tpu", lambda strategy: True)
    images, labels = np.zeros((6, 8, 8, 3), "float32"), np.zeros(6, "int32")
    data = tf.data.Dataset.from_tensor_slices((images, labels))
    with pytest.raises(InputError, match=r"drop_remainder=True.*Received: shape \(None, 8, 8, 3\)"):
        model.fit(data.batch(4), shuffle=False, verbose=0)
    with pytest.raises(InputError, match="drop_remainder=True"):
        model.evaluate(data.batch(4), verbose=0)
    with pytest.raises(InputError, match=r"shape \(4,\), string"):
        exact.check_tpu_batches((tf.TensorSpec((4, 2)), tf.TensorSpec((4,), tf.string)))
    model.fit(data.batch(3, drop_remainder=True), verbose=0, shuffle=False)


def test_a_model_made_outside_the_scope_is_refused():
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
model.compile("sgd", "mse")  # made in the scope then
print(type(model.optimizer._distribution_strategy).__name__)
"""
    done = python("-c", code)
    lines = done.stdout.splitlines()
    assert len(lines) == 3, done.stderr[-2000:]
    assert "A model must be made in the scope of the strategy" in lines[0]
    assert "An optimizer must be made in the scope of the strategy" in lines[1]
    assert lines[2] == "MirroredStrategy"


def test_steps_done_before_are_not_run_again():
    model = vk.vit("Ti/4", image_size=8, num_classes=3, **TINY)
    model.compile("sgd", training.SmoothedCrossEntropy(), steps_per_execution=2)
    images = np.random.default_rng(0).normal(size=(14, 8, 8, 3)).astype("float32")
    data = tf.data.Dataset.from_tensor_slices((images, np.arange(14) % 3)).batch(2)
    model.fit(data, epochs=2, steps_per_epoch=5, first_step=3, shuffle=False, verbose=0)
    assert int(model.optimizer.iterations) == 2 + 5
