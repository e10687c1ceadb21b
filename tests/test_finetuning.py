import keras
import numpy as np
import pytest
from conftest import TINY, python

import vitkeras as vk
from vitkeras import private, training
from vitkeras.errors import InputError
from vitkeras.finetuning import freeze, layer_factors
from vitkeras.runs import RunDirectory
from vitkeras.training import callbacks, checkpoints

IMAGES = np.random.default_rng(0).uniform(-1, 1, (12, 8, 8, 3)).astype("float32")
LABELS = np.arange(12) % 3
RICH = {"classifier": "map", "pre_logits": True, "num_registers": 1, "layer_scale": 0.1}


def make_model(what=None, name="adamw", dropout_rate=0.1, **options):
    """A compiled model; eager, which is faster where a graph would be used only once."""
    model = vk.vit("Ti/4", image_size=8, num_classes=3, dropout_rate=dropout_rate, **TINY)
    freeze(model, what)
    optimizer = training.make_optimizer(name, 1e-2, variables=model.trainable_variables, **options)
    optimizer.build(model.trainable_variables)
    loss = training.SmoothedCrossEntropy()
    model.compile(optimizer, loss, metrics=["accuracy"], run_eagerly=True)
    return model


def layers_of(variables):
    return list(dict.fromkeys(variable.path.partition("/")[0] for variable in variables))


@pytest.mark.parametrize("make, what, trained", [
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
def test_what_is_frozen_stays_frozen_in_a_clone_and_on_load(make, what, trained, tmp_path):
    model = vk.vit(**{"variant": "Ti/4", "image_size": 8, "num_classes": 3, **TINY, **make})
    every = [v.path for v in model.trainable_variables]
    freeze(model, what)
    paths = [v.path for v in model.trainable_variables]
    assert layers_of(model.trainable_variables) == trained
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for other in (model.from_config(model.get_config()), loaded):
        assert [v.path for v in other.trainable_variables] == paths
        assert [v.path for v in other.weights] == [v.path for v in model.weights]
    freeze(loaded, None)
    assert [v.path for v in loaded.trainable_variables] == every
    clone = keras.models.clone_model(model)  # Keras's own, whose weights all train
    freeze(clone, what)
    assert [v.path for v in clone.trainable_variables] == paths


def test_a_resnet_has_a_backbone_but_no_blocks():
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(3, name="norm")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2, name="head")(hidden))
    freeze(model, "backbone")
    assert layers_of(model.trainable_variables) == ["head"]
    with pytest.raises(InputError, match="freeze='blocks:1', a model with head, 0 blocks"):
        freeze(model, "blocks:1")


def test_what_cannot_be_frozen_is_refused():
    model = vk.vit("Ti/4", image_size=8, num_classes=3, **TINY)
    for what in ("head", "blocks", "blocks:", "blocks:3", "blocks:-1", ""):
        with pytest.raises(InputError, match=f"must be backbone.*freeze={what!r}.*2 blocks"):
            freeze(model, what)
    features = vk.vit("Ti/4", image_size=8, include_top=False, **TINY)
    with pytest.raises(InputError, match="freeze='backbone', a model without head"):
        freeze(features, "backbone")


@pytest.mark.parametrize("name, what, layer_decay", [
    ("adamw", "blocks:1", 0.5), ("sgd", "backbone", 1.0), ("sgd", "blocks:0", 0.5),
])  # fmt: skip
def test_what_is_frozen_does_not_move_and_its_average_is_kept(name, what, layer_decay, tmp_path):
    model = make_model(what, name, weight_decay=0.1, ema_momentum=0.5, layer_decay=layer_decay)
    kept = model.from_config(model.get_config())
    run = RunDirectory(tmp_path / "run")
    run.create({}, ["x", "y", "z"], {}, {})
    before = {v.path: np.array(v) for v in model.weights}
    keeper = callbacks.ModelKeeper(run, kept, lambda: {"accuracy": 1.0, "loss": 0.5})
    model.fit(IMAGES, LABELS, batch_size=4, epochs=2, verbose=0, callbacks=[keeper])
    trained = {v.path for v in model.trainable_variables}
    averages = dict(
        zip([v.path for v in model.trainable_variables],
            private.moving_averages(model.optimizer), strict=True)
    )  # fmt: skip
    for weight in run.load_model("last").weights:
        path = weight.path
        np.testing.assert_array_equal(weight, averages.get(path, before[path]), err_msg=path)
        assert (path in averages) == (path in trained)
    moved = {v.path for v in model.weights if not np.array_equal(v, before[v.path])}
    assert moved == trained


def test_each_layer_has_the_rate_of_its_depth():
    model = vk.vit(
        "R+Ti/16", image_size=32, num_classes=3, positions_at="every_block", **TINY, **RICH
    )
    paths = [v.path for v in model.trainable_variables]
    factors = dict(
        zip([p.partition("/")[0] for p in paths], layer_factors(paths, 0.5), strict=True)
    )
    assert factors == {
        "stem": 0.125, "patch_encoder": 0.125, "positions_00": 0.25, "block_00": 0.25,
        "positions_01": 0.5, "block_01": 0.5, "norm": 1, "map_head": 1, "pre_logits": 1, "head": 1,
    }  # fmt: skip
    shared = layer_factors(["positions/embedding", "block_11/mlp_in/kernel"], 0.75)
    assert shared == [0.75**13, 0.75]
    with pytest.raises(InputError, match=r"blocks that train.*layer_decay=0.75.*\['head'\]"):
        make_model("backbone", layer_decay=0.75)
    for bad in (0, 1.5, float("nan")):
        with pytest.raises(InputError, match="`layer_decay` must be above 0 and at most 1"):
            training.make_optimizer("sgd", 0.1, layer_decay=bad)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_updates_and_weight_decay_are_multiplied_by_the_factor(name):
    def steps(layer_decay, weight_decay, gradient):
        model = make_model(name=name, weight_decay=weight_decay, layer_decay=layer_decay)
        for weight in model.trainable_variables:
            weight.assign(np.ones(weight.shape))
        gradients = [gradient * keras.ops.ones(v.shape) for v in model.trainable_variables]
        model.optimizer.apply(gradients, model.trainable_variables)
        return {v.path: float(np.ravel(v)[0]) - 1 for v in model.trainable_variables}

    for weight_decay, gradient in ((0.0, 0.3), (0.1, 0.0)):
        whole, scaled = (steps(decay, weight_decay, gradient) for decay in (1.0, 0.5))
        factors = dict(zip(whole, layer_factors(list(whole), 0.5), strict=True))
        kernels = [path for path in whole if path.endswith("/kernel")]
        assert all(whole[path] < -1e-4 for path in (whole if gradient else kernels))
        for path in whole:
            assert scaled[path] == pytest.approx(whole[path] * factors[path], abs=2e-7), path


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_one_rate_for_all_is_kerass_own_optimizer_to_the_bit(name):
    plain, layerwise = training.optimizers.OPTIMIZERS[name]
    made = training.make_optimizer(name, training.WarmupDecay(0.1, 8, 2), 0.1, 1.0, 0.9)
    assert type(made) is plain
    results = []
    for kind, more in ((plain, {}), (layerwise, {"layer_decay": 1.0})):
        rng = np.random.default_rng(0)
        optimizer = kind.from_config(made.get_config() | more)
        layers = [keras.layers.Dense(3, name=f"block_0{i}") for i in range(3)]
        for layer in layers:
            layer.build((None, 4))
            layer.kernel.assign(rng.normal(size=(4, 3)))
        weights = [weight for layer in layers for weight in layer.weights]
        optimizer.exclude_from_weight_decay(weights[1:])
        for _ in range(5):
            gradients = [rng.normal(size=w.shape).astype("float32") for w in weights]
            optimizer.apply([keras.ops.convert_to_tensor(g) for g in gradients], weights)
        results.append({v.path: np.array(v) for v in [*weights, *optimizer.variables]})
    assert results[0].keys() == results[1].keys()
    for path, array in results[0].items():
        np.testing.assert_array_equal(array, results[1][path], err_msg=path)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_restored_state_goes_on_bit_for_bit(name, tmp_path):
    options = {"what": "blocks:1", "name": name, "layer_decay": 0.5, "weight_decay": 0.1}
    model = make_model(**options, ema_momentum=0.9, clip_norm=1.0)
    model.fit(IMAGES, LABELS, batch_size=4, epochs=1, shuffle=False, verbose=0)
    checkpoints.save_state(tmp_path, 3, checkpoints.arrays_of(model), {})
    other = make_model(**options, ema_momentum=0.9, clip_norm=1.0)
    other.train_on_batch(IMAGES, LABELS)  # makes the metrics
    checkpoints.restore(other, checkpoints.latest_state(tmp_path)[0])
    for trained in (model, other):
        trained.train_on_batch(IMAGES, LABELS)
    for key, array in checkpoints.arrays_of(model).items():
        np.testing.assert_array_equal(array, checkpoints.arrays_of(other)[key], err_msg=key)


def test_a_compiled_model_goes_on_in_a_fresh_process(tmp_path):
    model = make_model(
        "blocks:1", dropout_rate=0.0, weight_decay=0.1, layer_decay=0.5, ema_momentum=0.9
    )
    model.train_on_batch(IMAGES, LABELS)
    model.save(tmp_path / "model.keras")
    model.train_on_batch(IMAGES, LABELS)
    code = (
        "import sys, keras, numpy as np, vitkeras.training\n"
        "model = keras.saving.load_model(sys.argv[1])\n"
        "images = np.random.default_rng(0).uniform(-1, 1, (12, 8, 8, 3)).astype('float32')\n"
        "model.run_eagerly = True\n"
        "model.train_on_batch(images, np.arange(12) % 3)\n"
        "optimizer = model.optimizer\n"
        "print(type(optimizer).__name__, optimizer.layer_decay, int(optimizer.iterations))\n"
        "names = [v.path for v in model.weights]\n"
        "np.savez(sys.argv[2], **dict(zip(names, model.get_weights())))"
    )
    done = python("-c", code, tmp_path / "model.keras", tmp_path / "weights.npz")
    assert done.stdout.strip() == "LayerwiseAdamW 0.5 2", done.stderr[-2000:]
    assert "Skipping" not in done.stderr
    with np.load(tmp_path / "weights.npz") as weights:
        for variable in model.weights:
            np.testing.assert_array_equal(variable, weights[variable.path], err_msg=variable.path)


@pytest.mark.slow
@pytest.mark.parametrize("name, what", [("sgd", "blocks:1"), ("adamw", "blocks:0")])
def test_replicas_train_as_one_device(name, what):
    code = """
import sys, keras, numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import vitkeras as vk
from vitkeras import private, training
from vitkeras.finetuning import freeze

rng = np.random.default_rng(0)
images, labels = rng.normal(size=(22, 8, 8, 3)).astype("float32"), rng.integers(0, 3, 22)

def train(strategy, steps):
    name, what = sys.argv[1:]
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = vk.vit("Ti/4", image_size=8, num_classes=3, hidden_dim=24, mlp_dim=48, num_heads=3,
                       num_layers=2)
        freeze(model, what)
        optimizer = training.make_optimizer(
            name, training.WarmupDecay(0.1 if name == "sgd" else 1e-3, 9, 2), 0.1, 0.1, 0.9,
            model.trainable_variables, 0.5)
        optimizer.build(model.trainable_variables)
        model.compile(optimizer, training.SmoothedCrossEntropy(), accumulation_steps=steps)
    model.fit(tf.data.Dataset.from_tensor_slices((images, labels)).batch(8), epochs=3, verbose=0)
    averages = private.moving_averages(optimizer)
    return np.concatenate([np.ravel(v) for v in [*model.weights, *averages]])

one = train(tf.distribute.OneDeviceStrategy("CPU:0"), 1)
two = train(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]), 2)
print(np.abs(two - one).max())
"""
    done = python("-c", code, name, what)
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout) < 1e-5
