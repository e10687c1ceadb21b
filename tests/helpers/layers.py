"""The contract that every layer is tested against."""

import keras
import numpy as np


def check_layer(make, input_shape, tmp_path, prepare=lambda layer: None):
    """Config round trip, save and load, symbolic = eager shape, mixed precision, a fit step.

    `prepare` changes a built layer so that a step changes every weight.
    """
    x = np.random.default_rng(0).normal(size=input_shape).astype("float32")
    layer = make()
    again = type(layer).from_config(layer.get_config())
    assert again.get_config() == layer.get_config()

    inputs = keras.Input(input_shape[1:])
    outputs = layer(inputs)
    model = keras.Model(inputs, outputs)
    y = model(x)
    assert y.shape[1:] == outputs.shape[1:] and y.shape[0] == input_shape[0]
    assert tuple(layer.compute_output_shape(input_shape)) == tuple(y.shape)

    model.save(tmp_path / "layer.keras")
    loaded = keras.saving.load_model(tmp_path / "layer.keras")
    np.testing.assert_array_equal(loaded(x), y)

    keras.config.set_dtype_policy("mixed_bfloat16")
    mixed = make()
    out = mixed(x)
    assert keras.backend.standardize_dtype(out.dtype) == "bfloat16"
    assert all(v.dtype == "float32" for v in mixed.weights)
    keras.config.set_dtype_policy("float32")

    head = keras.layers.Dense(2)(keras.layers.Flatten()(outputs))
    model = keras.Model(inputs, head)
    prepare(layer)
    model.compile("sgd", "mse")
    before = [v.numpy().copy() for v in model.trainable_variables]
    model.fit(x, np.ones((len(x), 2)), verbose=0)
    for old, new in zip(before, model.trainable_variables, strict=True):
        assert np.isfinite(new.numpy()).all() and not np.array_equal(old, new), new.path
