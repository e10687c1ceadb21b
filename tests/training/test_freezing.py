import keras
import numpy as np
import pytest
from helpers.models import TINY
from helpers.processes import python
from helpers.training import IMAGES, LABELS, compiled_model

import vitkeras as vk
from vitkeras.errors import InputError
from vitkeras.io.run_directory import RunDirectory
from vitkeras.keras_internals import moving_averages
from vitkeras.training.callbacks import ModelSaver
from vitkeras.training.freezing import check_freeze, freeze

RICH = {"classifier": "map", "pre_logits": True, "num_registers": 1, "layer_scale": 0.1}


def layers_of(variables):
    return list(dict.fromkeys(variable.path.partition("/")[0] for variable in variables))


@pytest.mark.parametrize("arguments, what, trained", [
    ({}, None, ["patch_encoder", "block_00", "block_01", "norm", "head"]),
    ({}, "backbone", ["head"]),
    ({}, "blocks:0", ["block_00", "block_01", "norm", "head"]),
    ({}, "blocks:1", ["block_01", "norm", "head"]),
    ({}, "blocks:2", ["norm", "head"]),
    (RICH, "backbone", ["head"]),
    (RICH, "blocks:2", ["norm", "map_head", "pre_logits", "head"]),
    ({"positions_at": "every_block"}, "blocks:1", ["positions_01", "block_01", "norm", "head"]),
    ({"positions_at": "every_block_shared"}, "blocks:1", ["block_01", "norm", "head"]),
    ({"variant": "R+Ti/16", "image_size": 32}, "blocks:1", ["block_01", "norm", "head"]),
    ({"variant": "R+Ti/16", "image_size": 32}, "backbone", ["head"]),
])  # fmt: skip
def test_frozen_layers_stay_frozen_in_a_clone_and_on_load(arguments, what, trained, tmp_path):
    model = vk.vit(**{"variant": "Ti/4", "image_size": 8, "num_classes": 3, **TINY, **arguments})
    unfrozen = [v.path for v in model.trainable_variables]
    freeze(model, what)
    paths = [v.path for v in model.trainable_variables]
    assert layers_of(model.trainable_variables) == trained
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for other in (model.from_config(model.get_config()), loaded):
        assert [v.path for v in other.trainable_variables] == paths
        assert [v.path for v in other.weights] == [v.path for v in model.weights]
    freeze(loaded, None)
    assert [v.path for v in loaded.trainable_variables] == unfrozen
    clone = keras.models.clone_model(model)  # does not copy `trainable` of sublayers
    freeze(clone, what)
    assert [v.path for v in clone.trainable_variables] == paths


def test_model_without_blocks():
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(3, name="norm")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2, name="head")(hidden))
    freeze(model, "backbone")
    assert layers_of(model.trainable_variables) == ["head"]
    for what in ("blocks:0", "blocks:1"):
        with pytest.raises(InputError, match=f"freeze='{what}', .* 0 blocks"):
            freeze(model, what)


def test_invalid_freeze():
    model = vk.vit("Ti/4", image_size=8, num_classes=3, **TINY)
    for what in ("head", "blocks", "blocks:", "blocks:3", "blocks:-1", ""):
        for check in (lambda what: freeze(model, what), lambda what: check_freeze(what, 2)):
            with pytest.raises(InputError, match=f"`freeze` .*freeze={what!r}.*2 blocks"):
                check(what)
    for what in (None, "backbone", "blocks:0", "blocks:2"):
        check_freeze(what, 2)
    features = vk.vit("Ti/4", image_size=8, include_top=False, **TINY)
    with pytest.raises(InputError, match="freeze='backbone', a model without head"):
        freeze(features, "backbone")


@pytest.mark.parametrize("name, what, layer_decay", [
    ("adamw", "blocks:1", 0.5), ("sgd", "backbone", 1.0), ("sgd", "blocks:0", 0.5),
])  # fmt: skip
def test_frozen_weights_do_not_change_and_are_saved(name, what, layer_decay, tmp_path):
    model = compiled_model(what, name, weight_decay=0.1, ema_momentum=0.5, layer_decay=layer_decay)
    clone = model.from_config(model.get_config())
    run = RunDirectory(tmp_path / "run")
    run.create({}, ["x", "y", "z"], {}, {})
    before = {v.path: np.array(v) for v in model.weights}
    saver = ModelSaver(run, clone, lambda: {"accuracy": 1.0, "loss": 0.5})
    model.fit(IMAGES, LABELS, batch_size=4, epochs=2, verbose=0, callbacks=[saver])
    trained = [v.path for v in model.trainable_variables]
    averages = dict(zip(trained, moving_averages(model.optimizer), strict=True))
    for weight in run.load_model("last").weights:
        path = weight.path
        np.testing.assert_array_equal(weight, averages.get(path, before[path]), err_msg=path)
    changed = {v.path for v in model.weights if not np.array_equal(v, before[v.path])}
    assert changed == set(trained)


@pytest.mark.slow
@pytest.mark.parametrize("name, what", [("sgd", "blocks:1"), ("adamw", "blocks:0")])
def test_replicas_equal_one_device(name, what):
    code = """
import sys, keras, numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import vitkeras as vk
from vitkeras import training
from vitkeras.keras_internals import moving_averages

rng = np.random.default_rng(0)
images, labels = rng.normal(size=(22, 8, 8, 3)).astype("float32"), rng.integers(0, 3, 22)

def train(strategy, accumulation_steps):
    name, what = sys.argv[1:]
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = vk.vit("Ti/4", image_size=8, num_classes=3, hidden_dim=24, mlp_dim=48, num_heads=3,
                       num_layers=2, include_rescaling=False)
        training.freeze(model, what)
        optimizer = training.make_optimizer(
            name, training.WarmupDecay(0.1 if name == "sgd" else 1e-3, 9, 2), 0.1, 0.1, 0.9,
            model.trainable_variables, 0.5)
        optimizer.build(model.trainable_variables)
        model.compile(optimizer, training.SmoothedCrossEntropy(), jit_compile=False,
                      accumulation_steps=accumulation_steps)
    model.fit(tf.data.Dataset.from_tensor_slices((images, labels)).batch(8), epochs=3, verbose=0)
    averages = moving_averages(optimizer)
    return np.concatenate([np.ravel(v) for v in [*model.weights, *averages]])

one = train(tf.distribute.OneDeviceStrategy("CPU:0"), 1)
two = train(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]), 2)
print(np.abs(two - one).max())
"""
    done = python("-c", code, name, what)
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout) < 1e-5
