import keras
import numpy as np
import pytest
from helpers.models import TINY, make

import vitkeras as vk
from vitkeras.errors import InputError

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 24, 16, 3), "uint8")
ROWS, COLUMNS, LAST = 3, 2, TINY["num_layers"] - 1


def vit(**options):
    return make(image_size=(24, 16), **options)


def tokens_after(model, index, norm):
    """The tokens after a block, computed layer by layer."""
    x = IMAGES.astype("float32")
    for layer in model.layers[1:]:
        x = layer(x)
        if layer.name == f"block_{index:02d}":
            return np.asarray(model.get_layer("norm")(x) if norm else x)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_registers": 2, "include_top": False},
        {"classifier": "map", "num_registers": 1},
        {"classifier": "gap", "positions": "sincos_2d", "positions_at": "every_block"},
    ],
)
def test_maps_are_the_tokens_after_a_block(options, norm):
    model = vit(**options)
    got = {k: np.asarray(v) for k, v in vk.features(model, (-1, 0), norm)(IMAGES).items()}
    token, registers = int(model.config.class_token), model.config.num_registers
    for index in (0, LAST):
        tokens, name = tokens_after(model, index, norm), f"block_{index:02d}"
        maps = got.pop(name)
        assert maps.shape == (2, ROWS, COLUMNS, TINY["hidden_dim"])
        for row in range(ROWS):
            for column in range(COLUMNS):
                patch = tokens[:, token + registers + row * COLUMNS + column]
                np.testing.assert_allclose(maps[:, row, column], patch, atol=1e-5)
        if token:
            np.testing.assert_allclose(got.pop(f"{name}_class_token"), tokens[:, 0], atol=1e-5)
        if registers:
            expected = tokens[:, token : token + registers]
            np.testing.assert_allclose(got.pop(f"{name}_registers"), expected, atol=1e-5)
    assert not got


def test_outputs_are_float32():
    outputs = vk.features(vit(dtype="mixed_bfloat16"), [np.int64(1)]).output
    assert {each.dtype for each in outputs.values()} == {"float32"}


def test_a_decoder_trains_and_is_saved(tmp_path):
    base = vk.features(vit(), (0, -1))
    maps = [base.output[f"block_{index:02d}"] for index in (0, LAST)]
    x = keras.layers.Concatenate()(maps)
    model = vk.Model(base.input, keras.layers.Conv2D(4, 1)(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    before = base.get_layer("block_00").get_weights()
    model.fit(IMAGES, np.ones((2, ROWS, COLUMNS), "int32"), verbose=0)
    assert not np.array_equal(before[0], base.get_layer("block_00").get_weights()[0])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(
        model.predict(IMAGES, verbose=0), loaded.predict(IMAGES, verbose=0)
    )


@pytest.mark.parametrize("layers", [(), (LAST + 1,), (-LAST - 2,), (0.5,), 1, "1"])
def test_unknown_blocks_are_refused(layers):
    with pytest.raises(InputError, match="`layers` must be a list of integers from"):
        vk.features(vit(), layers)


def test_other_models_are_refused():
    with pytest.raises(InputError, match="norm=True"):
        vk.features(vit(classifier="gap_norm"))
    assert vk.features(vit(classifier="gap_norm"), norm=False).output
    with pytest.raises(InputError, match="a ResNet has stages"):
        vk.features(vk.resnet("R50x1", image_size=32))
    with pytest.raises(InputError, match="must be made by `vit`"):
        vk.features(keras.Sequential([vit()]))
