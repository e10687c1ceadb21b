import keras
import numpy as np
import pytest
from helpers.models import TINY
from helpers.processes import python
from helpers.training import compiled_model

import vitkeras as vk
from vitkeras import training
from vitkeras.errors import InputError
from vitkeras.training.freezing import layer_factors
from vitkeras.training.optimizers import OPTIMIZERS


def test_training_does_not_import_tensorflow_on_jax():
    code = "import sys, vitkeras.training; print('tensorflow' in sys.modules)"
    assert python("-c", code, KERAS_BACKEND="jax").stdout.strip() == "False"


@pytest.mark.parametrize("lr_schedule", ["cosine", "linear"])
def test_schedule_warms_up_and_decays_to_zero(lr_schedule):
    schedule = training.WarmupDecay(0.1, total_steps=100, warmup_steps=10, lr_schedule=lr_schedule)
    rates = np.array([float(schedule(step)) for step in range(101)])
    np.testing.assert_allclose(rates[:10], 0.1 * np.arange(1, 11) / 10, rtol=1e-5)
    left = 1 - np.arange(91) / 90
    expected = left if lr_schedule == "linear" else (1 + np.cos(np.pi * (1 - left))) / 2
    np.testing.assert_allclose(rates[10:], 0.1 * expected, atol=1e-6)
    copy = training.WarmupDecay.from_config(schedule.get_config())
    assert copy.get_config() == schedule.get_config() and float(copy(42)) == float(schedule(42))


def test_invalid_arguments():
    with pytest.raises(InputError, match="warmup_steps=50, total_steps=50"):
        training.WarmupDecay(0.1, 50, 50)
    with pytest.raises(InputError, match="cosine, linear.*lr_schedule='step'"):
        training.WarmupDecay(0.1, 50, 5, "step")
    with pytest.raises(InputError, match="`learning_rate` .*=-1"):
        training.WarmupDecay(-1, 50, 5)
    for number in ({"weight_decay": -1}, {"clip_norm": 0}, {"ema_momentum": 1.0}):
        with pytest.raises(InputError, match=f"`{next(iter(number))}` must be"):
            training.make_optimizer("sgd", 0.1, **number)
    for bad in (0, 1.5, float("nan")):
        with pytest.raises(InputError, match=f"`layer_decay` .*={bad}"):
            training.make_optimizer("sgd", 0.1, layer_decay=bad)
    with pytest.raises(InputError, match="`optimizer` .*adamw, sgd.*'lamb'"):
        training.make_optimizer("lamb", 0.1)


def apply_random_gradients(optimizer, weight, steps):
    """Returns the weight after each step, and the gradients."""
    rng, values = np.random.default_rng(0), []
    gradients = rng.normal(size=(steps, *weight.shape)).astype("float32")
    for gradient in gradients:
        optimizer.apply([keras.ops.convert_to_tensor(gradient)], [weight])
        values.append(np.array(weight))
    return np.array(values), gradients


def test_momentum_applies_the_learning_rate_of_the_current_step():
    schedule = training.WarmupDecay(0.1, 8, 3)
    optimizer = training.make_optimizer("sgd", schedule, weight_decay=0.2)
    weight = keras.Variable(np.ones((3, 2), "float32"), name="kernel")
    values, gradients = apply_random_gradients(optimizer, weight, 8)
    expected, velocity = np.ones((3, 2)), np.zeros((3, 2))
    for step in range(8):
        rate = float(schedule(step))
        velocity = 0.9 * velocity + gradients[step]
        expected = expected * (1 - 0.2 * rate) - rate * velocity
        np.testing.assert_allclose(values[step], expected, rtol=1e-5)
    copy = type(optimizer).from_config(optimizer.get_config())
    assert copy.get_config() == optimizer.get_config() and copy.momentum == 0.9


@pytest.mark.parametrize("lr_schedule", ["cosine", "linear"])
@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_weights_do_not_change_after_the_last_step(name, layer_decay, lr_schedule):
    schedule = training.WarmupDecay(0.1, 5, 1, lr_schedule)
    optimizer = training.make_optimizer(name, schedule, 0.2, layer_decay=layer_decay)
    layer = keras.layers.Dense(2, use_bias=False, name="block_00")
    layer.build((None, 3))
    values, _ = apply_random_gradients(optimizer, layer.kernel, 9)
    assert all(np.abs(values[i] - values[i + 1]).min() > 1e-6 for i in range(4))
    np.testing.assert_array_equal(values[4], values[8])  # Keras's SGD would change them


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_weight_decay_is_decoupled_and_applies_to_kernels_only(name):
    model = vk.vit("Ti/4", image_size=8, num_classes=3, layer_scale=0.1, **TINY)
    for weight in model.trainable_variables:
        weight.assign(np.ones(weight.shape))
    optimizer = training.make_optimizer(
        name, 0.5, weight_decay=0.1, variables=model.trainable_variables
    )
    zeros = [keras.ops.zeros(v.shape) for v in model.trainable_variables]
    optimizer.apply(zeros, model.trainable_variables)
    kernels = 0
    for weight in model.trainable_variables:
        expected = 0.95 if len(weight.shape) == 2 else 1.0
        kernels += len(weight.shape) == 2
        np.testing.assert_allclose(weight, expected, rtol=1e-6, err_msg=weight.path)
    assert kernels == 1 + 4 * 2 + 1


def test_layer_factors_follow_the_depth():
    model = vk.vit(
        "R+Ti/16", image_size=32, num_classes=3, positions_at="every_block", classifier="map",
        pre_logits=True, num_registers=1, layer_scale=0.1, **TINY,
    )  # fmt: skip
    paths = [v.path for v in model.trainable_variables]
    layers = [path.partition("/")[0] for path in paths]
    assert dict(zip(layers, layer_factors(paths, 0.5), strict=True)) == {
        "stem": 0.125, "patch_encoder": 0.125, "positions_00": 0.25, "block_00": 0.25,
        "positions_01": 0.5, "block_01": 0.5, "norm": 1, "map_head": 1, "pre_logits": 1, "head": 1,
    }  # fmt: skip
    shared = layer_factors(["positions/embedding", "block_11/mlp_in/kernel"], 0.75)
    assert shared == [0.75**13, 0.75]
    with pytest.raises(InputError, match=r"`layer_decay` .*=0.75.*\['head'\]"):
        compiled_model("backbone", layer_decay=0.75)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_update_and_weight_decay_are_multiplied_by_the_layer_factor(name):
    def change(layer_decay, weight_decay, gradient):
        model = compiled_model(name=name, weight_decay=weight_decay, layer_decay=layer_decay)
        for weight in model.trainable_variables:
            weight.assign(np.ones(weight.shape))
        gradients = [gradient * keras.ops.ones(v.shape) for v in model.trainable_variables]
        model.optimizer.apply(gradients, model.trainable_variables)
        return {v.path: float(np.ravel(v)[0]) - 1 for v in model.trainable_variables}

    for weight_decay, gradient in ((0.0, 0.3), (0.1, 0.0)):
        uniform, scaled = (change(decay, weight_decay, gradient) for decay in (1.0, 0.5))
        factors = dict(zip(uniform, layer_factors(list(uniform), 0.5), strict=True))
        kernels = [path for path in uniform if path.endswith("/kernel")]
        assert all(uniform[path] < -1e-4 for path in (uniform if gradient else kernels))
        for path in uniform:
            assert scaled[path] == pytest.approx(uniform[path] * factors[path], abs=2e-7), path


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_layerwise_optimizer_with_one_rate_equals_the_plain_one_bit_for_bit(name):
    plain, layerwise = OPTIMIZERS[name]
    made = training.make_optimizer(name, training.WarmupDecay(0.1, 8, 2), 0.1, 1.0, 0.9)
    assert type(made) is plain
    results = []
    for kind, arguments in ((plain, {}), (layerwise, {"layer_decay": 1.0})):
        rng = np.random.default_rng(0)
        optimizer = kind.from_config(made.get_config() | arguments)
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
