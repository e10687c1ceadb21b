"""`from_pretrained` and `load_weights`. Other libraries are the reference in tests/oracles."""

import dataclasses
import json

import keras
import ml_dtypes
import numpy as np
import pytest
from helpers.models import TINY
from helpers.weight_files import (
    FILES,
    SMALL,
    logits,
    pixels,
    random_arrays,
    randomized,
    spec,
    torch_spec,
    write,
)  # fmt: skip

import vitkeras as vk
from vitkeras.errors import InputError
from vitkeras.io.run_directory import RunDirectory
from vitkeras.models.config import ViTConfig
from vitkeras.pretrained import IMAGENET_MEAN_STD, INCEPTION_MEAN_STD
from vitkeras.pretrained.formats import big_vision, bit, google, timm
from vitkeras.pretrained.loading import read_config
from vitkeras.pretrained.mapping import POSITIONS
from vitkeras.pretrained.resizing import resize_positions

# A timm file without config.json warns; one test expects the warning.
pytestmark = pytest.mark.filterwarnings("ignore:There is no config.json beside")


def small_vit(**options):
    return vk.vit("Ti/4", **{"image_size": 16, "num_classes": 5, **TINY, **options})


def mapping_of(format, expected, path):
    return next(each for each in format.weight_map(expected) if each.path == path)


@pytest.mark.parametrize("kind", FILES)
def test_architecture_and_weights_come_from_the_file(kind, tmp_path):
    format, expected = FILES[kind]
    arrays = random_arrays(format, expected)
    path = write(format, arrays, tmp_path)
    options = {} if format in (google, big_vision, bit) else {"num_heads": 3}
    grid = getattr(expected.config, "grid", None)
    if grid == (2, 3):
        options["grid"] = grid
    model = vk.from_pretrained(path, **options)
    assert model.config == expected.config
    weights = {weight.path: np.asarray(weight) for weight in model.weights}
    mappings = {mapping.path: mapping for mapping in format.weight_map(expected)}
    assert set(weights) == set(mappings)
    for name, mapping in mappings.items():
        if expected.mean_std == INCEPTION_MEAN_STD or "projection" not in name:
            value = mapping.read([arrays[n] for n in mapping.names])
            np.testing.assert_array_equal(weights[name], value)
    fresh = vk.from_pretrained(path, num_classes=7, image_size=(96, 64), **options)
    assert fresh.input_shape == (None, 96, 64, 3) and fresh.output_shape == (None, 7)
    assert not np.any(fresh.get_layer("head").kernel)
    assert "pre_logits" not in [layer.name for layer in fresh.layers]
    report = vk.load_weights(model, path, grid=grid)
    assert len(report["copied"]) == len(weights) and not report["resized"] + report["initialized"]
    assert f"{len(weights)} weights copied" in str(report)


def test_group_norms_may_be_stored_with_axes_of_length_1(tmp_path):
    format, expected = FILES["google, R26"]
    arrays = random_arrays(format, expected)
    plain = logits(vk.from_pretrained(write(format, arrays, tmp_path)))
    wide = {name: a[None, None, None] if "gn" in name else a for name, a in arrays.items()}
    np.testing.assert_array_equal(logits(vk.from_pretrained(write(format, wide, tmp_path))), plain)


@pytest.mark.parametrize("dtype", ["float16", "float64", ml_dtypes.bfloat16])
@pytest.mark.parametrize("kind", ["google", "hugging face"])
def test_other_float_types_are_read(kind, dtype, tmp_path):
    format, expected = FILES[kind]
    arrays = {k: v.astype(dtype) for k, v in random_arrays(format, expected).items()}
    model = vk.from_pretrained(write(format, arrays, tmp_path), num_heads=3)
    mapping = mapping_of(format, expected, "block_01/mlp_in/kernel")
    value = mapping.read([arrays[name].astype("float32") for name in mapping.names])
    np.testing.assert_array_equal(model.get_layer("block_01").mlp_in.kernel, value)


@pytest.mark.parametrize("kind", ["google", "hugging face", "timm"])
def test_positions_are_resized_as_in_the_origin_of_the_file(kind, tmp_path):
    format, expected = FILES[kind]
    arrays = random_arrays(format, expected)
    path = write(format, arrays, tmp_path)
    mapping = mapping_of(format, expected, POSITIONS)
    old = mapping.read([arrays[name] for name in mapping.names])
    config = expected.config
    model = small_vit(image_size=(24, 20), gelu=config.gelu, epsilon=config.epsilon)
    report = vk.load_weights(model, path)
    assert report["resized"] == [POSITIONS]
    embedding = model.get_layer("patch_encoder").positions.embedding
    wanted = resize_positions(old, (4, 4), (6, 5), 1, expected.position_resize)
    np.testing.assert_array_equal(embedding, wanted)
    vk.load_weights(model, path, resize="bilinear")
    wanted = resize_positions(old, (4, 4), (6, 5), 1, "bilinear")
    np.testing.assert_array_equal(embedding, wanted)


def test_a_non_square_grid_must_be_given_or_that_of_the_model(tmp_path):
    format, expected = FILES["google, not square"]
    path = write(format, random_arrays(format, expected), tmp_path)
    with pytest.raises(InputError, match=r"grid=.*weights.npz, which has 6"):
        vk.from_pretrained(path)
    model = small_vit(image_size=(8, 12))
    assert not vk.load_weights(model, path)["resized"]
    with pytest.raises(InputError, match=r"grid=\(4, 2\), .*npz has 6"):
        vk.from_pretrained(path, grid=(4, 2))


def test_a_given_grid_has_priority_over_a_square(tmp_path):
    wide = spec(grid=(2, 8))
    path = write(google, random_arrays(google, wide), tmp_path)
    assert vk.from_pretrained(path).input_shape[1:3] == (16, 16)
    assert vk.from_pretrained(path, grid=(2, 8)).input_shape[1:3] == (8, 32)
    model = small_vit(image_size=(8, 32))
    assert vk.load_weights(model, path)["resized"]
    assert not vk.load_weights(model, path, grid=(2, 8))["resized"]
    with pytest.raises(InputError, match=r"grid=\(3, 4\)"):
        vk.from_pretrained(path, grid=(3, 4))


@pytest.mark.parametrize("registers, grid", [(0, (3, 5)), (4, (4, 11)), (0, (4, 16))])
def test_a_given_or_stated_grid_of_a_timm_model_is_used(registers, grid, tmp_path):
    file = torch_spec(("norm", 1 + registers), num_registers=registers, grid=grid)
    write(timm, random_arrays(timm, file), tmp_path)
    size = (4 * grid[0], 4 * grid[1])
    model = vk.from_pretrained(tmp_path / "model.safetensors", grid=grid, num_heads=3)
    assert model.input_shape[1:3] == size
    for config in (
        {"model_args": {"img_size": list(size), "num_heads": 3}},
        {"pretrained_cfg": {"input_size": [3, *size]}, "model_args": {"num_heads": 3}},
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        model = vk.from_pretrained(tmp_path)
        assert model.input_shape[1:3] == size and model.config.grid == grid


def test_config_json_of_a_timm_model(tmp_path):
    file = torch_spec(("norm", 1), hidden_dim=192, num_heads=6)
    write(timm, random_arrays(timm, file), tmp_path)
    for config, expected in (
        ({"model_args": {"num_heads": 6}}, (6, "exact")),
        ({"model_args": {"num_heads": 6, "act_layer": "gelu_tanh"}}, (6, "tanh")),
        ({"architecture": "vit_base_patch16_gap_224"}, (16, "exact")),
        ({"architecture": "vit_so400m_patch14_siglip_gap_224"}, (16, "exact")),
        ({"architecture": "vit_so400m_patch16_siglip_gap_256"}, (16, "tanh")),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        model = vk.from_pretrained(tmp_path)
        block = model.get_layer("block_00")
        assert (block.num_heads, block.gelu) == expected
        assert (model.config.num_heads, model.config.gelu) == expected
    for config, message in (
        ({"model_args": {"act_layer": "relu"}}, "`act_layer`.*relu"),
        ({"model_args": {"norm_layer": "rmsnorm"}}, "`norm_layer`.*rmsnorm"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(InputError, match=message):
            vk.from_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.warns(UserWarning) as caught:
        vk.from_pretrained(tmp_path / "model.safetensors")
    messages = " ".join(str(warning.message) for warning in caught)
    assert "heads" in messages and "guess: 3" in messages
    assert "no config.json" in messages and "`mean_std`" in messages


@pytest.mark.parametrize(
    "card, normalize",
    [
        ({"do_normalize": False, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}, lambda v: v),
        ({"image_mean": 0.5, "image_std": 0.25}, lambda v: (v - 0.5) / 0.25),
        (
            {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 1 / 127.5},
            lambda v: (v * 2 - 0.5) / 0.5,
        ),
        (
            {"image_mean": [127.5] * 3, "image_std": [127.5] * 3, "do_rescale": False},
            lambda v: (v * 255 - 127.5) / 127.5,
        ),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_the_normalization_of_the_processor_is_folded(card, normalize, nested, tmp_path):
    format, expected = FILES["hugging face"]
    path = write(format, random_arrays(format, expected), tmp_path)
    plain = vk.from_pretrained(path, num_heads=3, include_rescaling=False)
    name = "processor_config.json" if nested else "preprocessor_config.json"
    (tmp_path / name).write_text(json.dumps({"image_processor": card} if nested else card))
    folded = vk.from_pretrained(tmp_path, num_heads=3)
    images = pixels(folded)
    np.testing.assert_allclose(folded(images), plain(normalize(images / 255)), atol=2e-4)


def test_an_unsupported_processor_is_refused(tmp_path):
    write(*FILES["hugging face"][:1], random_arrays(*FILES["hugging face"]), tmp_path)
    for card in ({"image_mean": 0.5, "image_std": 0.5, "offset": True}, {"image_mean": [1, 2]}):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(card))
        with pytest.raises(InputError, match="preprocessor_config.json.*`mean_std`"):
            vk.from_pretrained(tmp_path, num_heads=3)


def test_mean_std_is_folded_into_the_projection(tmp_path):
    format, expected = FILES["hugging face"]
    path = write(format, random_arrays(format, expected), tmp_path)
    plain = vk.from_pretrained(path, num_heads=3, include_rescaling=False)
    folded = vk.from_pretrained(path, num_heads=3, mean_std=IMAGENET_MEAN_STD)
    images = pixels(folded)
    mean, std = np.array(IMAGENET_MEAN_STD)
    np.testing.assert_allclose(folded(images), plain((images / 255 - mean) / std), atol=1e-5)
    assert not np.allclose(folded(images), plain(images / 127.5 - 1), atol=1e-2)
    # The same from the file beside the weights.
    card = {"image_mean": IMAGENET_MEAN_STD[0], "image_std": IMAGENET_MEAN_STD[1]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(card))
    again = vk.from_pretrained(tmp_path, num_heads=3)
    np.testing.assert_array_equal(again(images), folded(images))
    with pytest.raises(InputError, match=r"`mean_std`.*mean_std=\(0.5, 0.5\)"):
        vk.from_pretrained(path, num_heads=3, mean_std=(0.5, 0.5))


def test_config_json_of_hugging_face(tmp_path):
    format = FILES["hugging face"][0]
    expected = torch_spec(FILES["hugging face"][1].naming, grid=(2, 8))
    write(format, random_arrays(format, expected), tmp_path)
    config = {"num_attention_heads": 6, "hidden_act": "gelu_new", "layer_norm_eps": 1e-3,
              "image_size": [8, 32]}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    read = vk.from_pretrained(tmp_path).config
    assert (read.num_heads, read.gelu, read.epsilon, read.grid) == (6, "tanh", 1e-3, (2, 8))
    for text, message in (
        ("{", "config.json must be a JSON object"),
        ("[]", "config.json must be a JSON object"),
        ('{"hidden_act": "quick_gelu", "num_attention_heads": 3}', "`hidden_act`.*'quick_gelu'"),
        ('{"num_attention_heads": 7}', "num_heads=7"),
        ('{"num_attention_heads": "3"}', "config.json must be .*num_attention_heads"),
        (
            '{"num_attention_heads": 3, "layer_norm_eps": "a"}',
            r"config.json .*layer_norm_eps",
        ),
        ('{"num_attention_heads": 3, "layer_norm_eps": -1}', "layer_norm_eps=-1"),
    ):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(InputError, match=message):
            vk.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "options", [{}, {"positions": "relative"}, {"positions_at": "every_block_shared"}]
)
def test_a_run_directory_and_a_keras_file(options, tmp_path):
    model = randomized(dropout_rate=0.1, **options)
    run = RunDirectory(tmp_path / "run")
    run.create({}, ["ant", "bee", "cow"], {}, {})
    run.save_model(model, "best")
    model.save(tmp_path / "model.keras")
    for path in (tmp_path / "run", tmp_path / "model.keras"):
        assert read_config(path) == model.config
        np.testing.assert_array_equal(logits(vk.from_pretrained(path)), logits(model))
        size = None if "positions" in options else (8, 24)
        other = vk.from_pretrained(path, num_classes=4, image_size=size, dropout_rate=0.2)
        assert other.get_layer("block_00").dropout_rate == 0.2
        np.testing.assert_array_equal(
            other.get_layer("block_01").mlp_in.kernel, model.get_layer("block_01").mlp_in.kernel
        )
        same = small_vit(num_classes=3, **options)
        assert not vk.load_weights(same, path)["initialized"]
        np.testing.assert_allclose(logits(same), logits(model), atol=1e-6)


def test_arguments_that_do_not_apply_are_refused(tmp_path):
    model = randomized()
    model.save(tmp_path / "model.keras")
    for name, value in (("mean_std", IMAGENET_MEAN_STD), ("grid", (9, 9)), ("num_heads", 6)):
        with pytest.raises(InputError, match=f"`{name}`"):
            vk.from_pretrained(tmp_path / "model.keras", **{name: value})
    with pytest.raises(InputError, match="`resize`.*'bogus'"):
        vk.from_pretrained(tmp_path / "model.keras", resize="bogus")
    with pytest.raises(InputError, match="drop_rate"):
        vk.from_pretrained(tmp_path / "model.keras", drop_rate=0.1)
    features = vk.from_pretrained(tmp_path / "model.keras", include_top=False)
    assert features.output_shape == (None, 24)


def test_a_head_of_other_classes_stays_fresh_and_pre_logits_unused(tmp_path):
    path = write(google, random_arrays(google, spec(pre_logits=True)), tmp_path)
    report = vk.load_weights(small_vit(num_classes=9), path)
    assert sorted(report["initialized"]) == ["head/bias", "head/kernel"]
    assert report["unused"] == [
        "head/bias", "head/kernel", "pre_logits/bias", "pre_logits/kernel",
    ]  # fmt: skip
    assert "4 unused: head/bias" in str(report)
    with pytest.raises(InputError, match="`pre_logits`.*pre_logits=False"):
        vk.load_weights(small_vit(), path)


def test_other_numerics_and_a_zero_head_are_warned_of(tmp_path):
    format, expected = FILES["hugging face"]
    path = write(format, random_arrays(format, expected), tmp_path)
    with pytest.warns(UserWarning) as caught:
        vk.load_weights(small_vit(), path)
    messages = [str(warning.message) for warning in caught]
    assert "gelu='exact'" in messages[0] and "'tanh'" in messages[0]
    assert "epsilon=1e-12" in messages[1]
    arrays = random_arrays(google, spec())
    arrays["head/kernel"][:] = 0
    with pytest.warns(UserWarning, match="head of .* is all zeros"):
        vk.from_pretrained(write(google, arrays, tmp_path))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"mlp_dim": 32}, "mlp_dim=32 in the model, 48 in .*weights.npz"),
        ({"num_layers": 1}, "num_layers=1 in the model, 2 in"),
        ({"num_layers": 3}, "num_layers=3 in the model, 2 in"),
        ({"num_heads": 4}, "num_heads=4 in the model, 3 in .*weights.npz"),
        ({"classifier": "gap", "num_classes": 7}, "class_token=False in the model, True in"),
        ({"classifier": "token_gap"}, "`classifier`.*'token_gap', .*weights.npz has 'token'"),
        ({"layer_scale": 0.1}, "layer_scale='a LayerScale' in the model, None in"),
        ({"positions": "none"}, "positions='none' in the model, 'learned' in"),
        ({"variant": "R+Ti/16", "image_size": 32}, r"stem_units=\(\) in the model, None in"),
        ({"channels": 1}, "channels=1 in the model, 3 in"),
    ],
)
def test_another_architecture_is_refused_and_nothing_is_loaded(options, message, tmp_path):
    path = write(google, random_arrays(google, spec()), tmp_path)
    options = {"variant": "Ti/4", "image_size": 16, "num_classes": 5, **TINY, **options}
    model = vk.vit(**options)
    before = model.get_weights()
    with pytest.raises(InputError, match=message):
        vk.load_weights(model, path)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_models_of_another_kind_are_refused(tmp_path):
    path = write(google, random_arrays(google, spec()), tmp_path)
    with pytest.raises(InputError, match="a ViT, for a ResNet"):
        vk.load_weights(vk.resnet("R50x1", image_size=32, num_classes=5), path)
    dense = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model = small_vit()
    nested = keras.Sequential([keras.Input((16, 16, 3)), model])
    plain = keras.Model(model.input, model.output)
    for other in (dense, nested, plain):
        with pytest.raises(InputError, match=f"`model` must be made by.*{other.name}"):
            vk.load_weights(other, path)


def test_optional_arrays_are_ignored(tmp_path):
    format, expected = FILES["hugging face, DINOv2"]
    arrays = random_arrays(format, expected) | {"embeddings.mask_token": np.zeros((1, 24), "f4")}
    vk.from_pretrained(write(format, arrays, tmp_path), num_heads=3)
    format, expected = FILES["big_vision"]
    plain = random_arrays(format, expected)
    arrays = {k.replace("params/", "opt/target/"): v for k, v in plain.items()}
    arrays["opt/state/step"] = np.zeros((), "i4")
    vk.from_pretrained(write(format, arrays, tmp_path))


def test_an_unknown_number_of_heads_must_be_given(tmp_path):
    path = write(timm, random_arrays(*FILES["timm"]), tmp_path)
    with pytest.raises(InputError, match="`num_heads`.*width 24"):
        vk.from_pretrained(path)
    wide = torch_spec(("norm", 1), hidden_dim=128, num_heads=2)
    path = write(timm, random_arrays(timm, wide), tmp_path)
    with pytest.warns(UserWarning, match="number of heads of .* is a guess: 2"):
        model = vk.from_pretrained(path)
    assert model.config.num_heads == 2  # one for each 64 channels


@pytest.mark.parametrize(
    "config, extra, message",
    [
        ({"global_pool": "avg"}, {}, "global_pool='avg' and a class token"),
        ({}, {"fc_norm.weight": np.zeros(24, "f4")}, "fc_norm and cls_token"),
        ({}, {"norm_pre.weight": np.zeros(24, "f4")}, r"norm_pre.weight \(24,\): unknown"),
    ],
)
def test_unsupported_timm_models_are_refused(config, extra, message, tmp_path):
    arrays = random_arrays(*FILES["timm"]) | extra
    write(timm, arrays, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=message):
        vk.from_pretrained(tmp_path, num_heads=3)


def test_hybrids_and_resnets_with_other_units_are_refused(tmp_path):
    odd = spec(patch_size=1, stem_units=(1, 1), grid=(2, 2))
    path = write(google, random_arrays(google, odd), tmp_path)
    with pytest.raises(InputError, match=r"R\+Ti/16.*stem_units=\(1, 1\)"):
        vk.from_pretrained(path)
    config = dataclasses.replace(FILES["bit"][1].config, num_units=(1, 1))
    small = dataclasses.replace(FILES["bit"][1], config=config)
    path = write(bit, random_arrays(bit, small), tmp_path)
    with pytest.raises(InputError, match=r"R50x1.*num_units=\(1, 1\)"):
        vk.from_pretrained(path)


def test_read_config_does_not_need_the_weights(tmp_path):
    path = write(google, random_arrays(google, spec()), tmp_path)
    assert read_config(path) == SMALL
    assert isinstance(read_config(path), ViTConfig)


@pytest.mark.parametrize(
    "url", ["https://example.com/B_16.npz", "hf://google/vit-base-patch16-224"]
)
def test_urls_are_refused(url):
    model = vk.vit("Ti/16", image_size=16, num_classes=2, num_layers=1)
    for load in (vk.from_pretrained, lambda path: vk.load_weights(model, path)):
        with pytest.raises(InputError, match=f"{url}, a URL. Download it before"):
            load(url)
