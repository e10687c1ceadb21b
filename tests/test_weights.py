"""Weight files: recognised, checked, loaded, written. The peers themselves are in test_oracle_*."""

import dataclasses
import io
import json
import pickle
import struct
import time
import tracemalloc
import zipfile

import keras
import ml_dtypes
import numpy as np
import pytest
from conftest import TINY
from safetensors.numpy import save_file

import vitkeras as vk
from vitkeras.errors import InputError
from vitkeras.positions import resize_positions
from vitkeras.runs import RunDirectory
from vitkeras.weights import HALF, IMAGENET, big_vision, bit, flax, google, hugging_face, timm
from vitkeras.weights.rules import VitFacts, encoder_facts

# Said of a bare timm file; a test of its own waits for it.
pytestmark = pytest.mark.filterwarnings("ignore:There is no config.json beside")
SMALL = VitFacts(24, 48, 3, 2, 4, (4, 4), num_classes=5)
CLASSED = {"style": ("", flax.BY_CLASS)}
VIT, DINO = (("vit.", hugging_face.VIT), ("", hugging_face.DINO))
TORCH = {"gelu": "exact", "epsilon": 1e-6}


def facts(style=("", flax.IN_ORDER), **changes):
    return dataclasses.replace(SMALL, style=style, **changes)


FILES = {
    "google": (google, facts()),
    "google, not square": (google, facts(grid=(2, 3))),
    "google, numbered by class": (google, facts(**CLASSED)),
    "google, gap": (google, facts(classifier="gap")),
    "google, pre_logits": (google, facts(pre_logits=True)),
    "google, no head": (google, facts(num_classes=None)),
    "google, R26": (google, facts(patch_size=1, num_units=(2, 2, 2, 2), grid=(2, 2))),
    "google, R": (google, facts(patch_size=8, num_units=(), grid=(1, 1))),
    "big_vision": (big_vision, facts(("params/", flax.BY_CLASS))),
    "big_vision, gap, sincos": (
        big_vision,
        facts(("opt/target/", flax.BY_CLASS), classifier="gap", positions="sincos_2d",
              grid=(14, 14)),
    ),
    "big_vision, map": (big_vision, facts(("", flax.BY_CLASS), classifier="map")),
    "bit": (bit, bit.ResNetFacts((3, 4, 6, 3), 1, 5)),
    "hugging face": (
        hugging_face,
        facts(VIT, gelu="exact", epsilon=1e-12, resize="bicubic"),
    ),
    "hugging face, DINOv2": (
        hugging_face,
        facts(DINO, **TORCH, resize="bicubic_antialias", layer_scale=True, num_classes=None,
              mean_std=IMAGENET, num_registers=4),
    ),
    "hugging face, DINOv2 classifier": (
        hugging_face,
        facts(("dinov2.", hugging_face.DINO), **TORCH, resize="bicubic", layer_scale=True,
              classifier="token_gap", mean_std=IMAGENET),
    ),
    "timm": (timm, facts(("norm", 1), **TORCH, resize="bicubic_antialias")),
    "timm, registers": (
        timm,
        facts(("norm", 3), **TORCH, resize="bicubic_antialias", num_registers=2, layer_scale=True),
    ),
    "timm, registers without places": (
        timm,
        facts(("norm", 0), **TORCH, resize="bicubic_antialias", num_registers=2),
    ),
    "timm, gap": (
        timm, facts(("fc_norm", 0), **TORCH, resize="bicubic_antialias", classifier="gap_norm")
    ),
}  # fmt: skip


def random_arrays(format, facts, seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: 0.3 * rng.normal(size=shape).astype("float32")
        for rule in format.rules(facts)
        for name, shape in zip(rule.names, rule.expected, strict=True)
    }


def write(format, arrays, folder):
    if "npz" in format.NAME:
        np.savez(folder / "weights.npz", **arrays)
        return folder / "weights.npz"
    save_file(arrays, folder / "model.safetensors")
    return folder / "model.safetensors"


def images(model, count=2):
    shape = (count, *model.input_shape[1:])
    return np.random.default_rng(3).uniform(-1, 1, shape).astype("float32")


def logits(model):
    return keras.ops.convert_to_numpy(model(images(model)))


@pytest.mark.parametrize("kind", FILES)
def test_a_file_tells_its_model(kind, tmp_path):
    format, expected = FILES[kind]
    arrays = random_arrays(format, expected)
    path = write(format, arrays, tmp_path)
    hints = {} if format in (google, big_vision, bit) else {"num_heads": 3}
    grid = getattr(expected, "grid", None)
    if grid == (2, 3):
        hints["grid"] = grid
    model = vk.from_pretrained(path, **hints)
    if format is not bit:
        mine = encoder_facts(model)
        kept = {field: getattr(expected, field) for field in ("style", "resize", "mean_std")}
        assert dataclasses.replace(mine, **kept) == expected
    weights = {weight.path: np.asarray(weight) for weight in model.weights}
    rules = {rule.path: rule for rule in format.rules(expected)}
    assert set(weights) == set(rules)
    mean_std = getattr(expected, "mean_std", HALF)
    for name, rule in rules.items():
        if mean_std == HALF or "projection" not in name:
            value = rule.read([arrays[n] for n in rule.names])
            np.testing.assert_array_equal(weights[name], value)
    fresh = vk.from_pretrained(path, num_classes=7, image_size=(96, 64), **hints)
    assert fresh.input_shape == (None, 96, 64, 3) and fresh.output_shape == (None, 7)
    assert not np.any(fresh.get_layer("head").kernel)
    assert "pre_logits" not in [layer.name for layer in fresh.layers]
    report = vk.load_weights(model, path, grid=grid)
    assert len(report["copied"]) == len(weights) and not report["resized"] + report["fresh"]
    assert f"{len(weights)} weights copied" in str(report)


def test_group_norms_may_be_stored_with_axes_of_one(tmp_path):
    format, expected = FILES["google, R26"]
    arrays = random_arrays(format, expected)
    plain = logits(vk.from_pretrained(write(format, arrays, tmp_path)))
    wide = {name: a[None, None, None] if "gn" in name else a for name, a in arrays.items()}
    np.testing.assert_array_equal(logits(vk.from_pretrained(write(format, wide, tmp_path))), plain)


@pytest.mark.parametrize("dtype", ["float16", "float64", ml_dtypes.bfloat16])
@pytest.mark.parametrize("kind", ["google", "hugging face"])
def test_other_floats_are_read(kind, dtype, tmp_path):
    format, expected = FILES[kind]
    arrays = {k: v.astype(dtype) for k, v in random_arrays(format, expected).items()}
    model = vk.from_pretrained(write(format, arrays, tmp_path), num_heads=3)
    rule = {rule.path: rule for rule in format.rules(expected)}["block_01/mlp_in/kernel"]
    value = rule.read([arrays[name].astype("float32") for name in rule.names])
    np.testing.assert_array_equal(model.get_layer("block_01").mlp_in.kernel, value)


def test_positions_are_resized_as_the_origin_does(tmp_path):
    for kind, prefix in (("google", 1), ("hugging face", 1), ("timm", 1)):
        format, expected = FILES[kind]
        arrays = random_arrays(format, expected)
        path = write(format, arrays, tmp_path)
        rule = {r.path: r for r in format.rules(expected)}["patch_encoder/positions/embedding"]
        old = rule.read([arrays[name] for name in rule.names])
        options = {"gelu": expected.gelu, "epsilon": expected.epsilon, "num_classes": 5}
        model = vk.vit("Ti/4", image_size=(24, 20), **options, **TINY)
        report = vk.load_weights(model, path)
        assert report["resized"] == ["patch_encoder/positions/embedding"]
        mine = model.get_layer("patch_encoder").positions.embedding
        wanted = resize_positions(old, (4, 4), (6, 5), prefix, expected.resize)
        np.testing.assert_array_equal(mine, wanted)
        vk.load_weights(model, path, resize="bilinear")
        wanted = resize_positions(old, (4, 4), (6, 5), prefix, "bilinear")
        np.testing.assert_array_equal(mine, wanted)


def test_a_grid_that_is_no_square_is_asked_for_or_is_the_models(tmp_path):
    format, expected = FILES["google, not square"]
    path = write(format, random_arrays(format, expected), tmp_path)
    with pytest.raises(InputError, match="give `grid=.*weights.npz, with 6 places"):
        vk.from_pretrained(path)
    model = vk.vit("Ti/4", image_size=(8, 12), num_classes=5, **TINY)
    assert not vk.load_weights(model, path)["resized"]
    with pytest.raises(InputError, match=r"as many places.*grid=\(4, 2\), .*npz has 6"):
        vk.from_pretrained(path, grid=(4, 2))


def test_a_grid_that_is_given_wins_over_a_square(tmp_path):
    wide = facts(grid=(2, 8))
    path = write(google, random_arrays(google, wide), tmp_path)
    assert vk.from_pretrained(path).input_shape[1:3] == (16, 16)
    assert vk.from_pretrained(path, grid=(2, 8)).input_shape[1:3] == (8, 32)
    model = vk.vit("Ti/4", image_size=(8, 32), num_classes=5, **TINY)
    assert vk.load_weights(model, path)["resized"]
    assert not vk.load_weights(model, path, grid=(2, 8))["resized"]
    with pytest.raises(InputError, match=r"grid=\(3, 4\)"):
        vk.from_pretrained(path, grid=(3, 4))


@pytest.mark.parametrize("registers, grid", [(0, (3, 5)), (4, (4, 11)), (0, (4, 16))])
def test_the_grid_of_a_timm_model_is_not_guessed_where_it_is_told(registers, grid, tmp_path):
    style = ("norm", 1 + registers)
    file = facts(style, **TORCH, num_registers=registers, grid=grid)
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
        assert model.input_shape[1:3] == size
        assert model.get_layer("patch_encoder").grid == grid


def test_what_config_json_says_of_a_timm_model(tmp_path):
    wide = dataclasses.replace(FILES["timm"][1], hidden_dim=192, mlp_dim=48, num_heads=6)
    write(timm, random_arrays(timm, wide), tmp_path)
    for config, expected in (
        ({"model_args": {"num_heads": 6}}, (6, "exact")),
        ({"model_args": {"num_heads": 6, "act_layer": "gelu_tanh"}}, (6, "tanh")),
        ({"architecture": "vit_base_patch16_gap_224"}, (16, "exact")),
        ({"architecture": "vit_so400m_patch14_siglip_gap_224"}, (16, "exact")),
        ({"architecture": "vit_so400m_patch16_siglip_gap_256"}, (16, "tanh")),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        block = vk.from_pretrained(tmp_path).get_layer("block_00")
        assert (block.num_heads, block.gelu) == expected
    for config, message in (
        ({"model_args": {"act_layer": "relu"}}, "`act_layer` among gelu, gelu_tanh"),
        ({"model_args": {"norm_layer": "rmsnorm"}}, "own `norm_layer`"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(InputError, match=message):
            vk.from_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.warns(UserWarning) as caught:
        vk.from_pretrained(tmp_path / "model.safetensors")
    said = " ".join(str(warning.message) for warning in caught)
    assert "number of heads of" in said and "guessed, 3" in said
    assert "no config.json beside" in said and "give `mean_std`" in said


@pytest.mark.parametrize(
    "card, scaled",
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
def test_images_are_scaled_as_the_processor_did(card, scaled, nested, tmp_path):
    format, expected = FILES["hugging face"]
    path = write(format, random_arrays(format, expected), tmp_path)
    plain = vk.from_pretrained(path, num_heads=3)
    name = "processor_config.json" if nested else "preprocessor_config.json"
    (tmp_path / name).write_text(json.dumps({"image_processor": card} if nested else card))
    values = (images(plain) + 1) / 2
    folded = vk.from_pretrained(tmp_path, num_heads=3)
    np.testing.assert_allclose(folded(2 * values - 1), plain(scaled(values)), atol=2e-4)


def test_a_processor_that_cannot_be_followed_is_refused(tmp_path):
    write(*FILES["hugging face"][:1], random_arrays(*FILES["hugging face"]), tmp_path)
    for card in ({"image_mean": 0.5, "image_std": 0.5, "offset": True}, {"image_mean": [1, 2]}):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(card))
        with pytest.raises(InputError, match="must say plainly how pixels are scaled"):
            vk.from_pretrained(tmp_path, num_heads=3)


def test_what_does_not_apply_is_refused(tmp_path):
    model = randomised()
    model.save(tmp_path / "model.keras")
    for more in ({"mean_std": IMAGENET}, {"grid": (9, 9)}, {"num_heads": 6}):
        with pytest.raises(InputError, match="is for files of others"):
            vk.from_pretrained(tmp_path / "model.keras", **more)
    with pytest.raises(InputError, match="`resize` must be one of.*'bogus'"):
        vk.from_pretrained(tmp_path / "model.keras", resize="bogus")
    with pytest.raises(InputError, match="`path` must end in .npz, or name a folder"):
        vk.save_weights(model, tmp_path / "model.keras")
    features = vk.from_pretrained(tmp_path / "model.keras", include_top=False)
    assert features.output_shape == (None, 24)


def test_common_folders_of_other_kinds_are_named(tmp_path):
    arrays = random_arrays(*FILES["timm"])
    write(timm, arrays | {"dist_token": np.zeros((1, 1, 24), "f4")}, tmp_path)
    with pytest.raises(InputError, match="no distillation token"):
        vk.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match="pytorch_model.bin, a torch pickle"):
        vk.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(InputError, match="Weights must be in one file.*max_shard_size"):
        vk.from_pretrained(tmp_path)


def test_what_the_weights_were_trained_with_is_folded_into_the_projection(tmp_path):
    format, expected = FILES["hugging face"]
    path = write(format, random_arrays(format, expected), tmp_path)
    plain = vk.from_pretrained(path, num_heads=3)
    folded = vk.from_pretrained(path, num_heads=3, mean_std=IMAGENET)
    x = images(plain)  # in [-1, 1]
    mean, std = np.array(IMAGENET)
    normalised = ((x + 1) / 2 - mean) / std
    np.testing.assert_allclose(folded(x), plain(normalised), atol=1e-5)
    assert not np.allclose(folded(x), plain(x), atol=1e-2)
    # As the files beside it say, in a folder.
    card = {"image_mean": IMAGENET[0], "image_std": IMAGENET[1]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(card))
    np.testing.assert_array_equal(vk.from_pretrained(tmp_path, num_heads=3)(x), folded(x))
    with pytest.raises(InputError, match="three means and three positive deviations"):
        vk.from_pretrained(path, num_heads=3, mean_std=(0.5, 0.5))


def test_the_files_beside_are_read(tmp_path):
    format, expected = FILES["hugging face"]
    expected = dataclasses.replace(expected, grid=(2, 8))
    write(format, random_arrays(format, expected), tmp_path)
    config = {"num_attention_heads": 6, "hidden_act": "gelu_new", "layer_norm_eps": 1e-3,
              "image_size": [8, 32]}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    mine = encoder_facts(vk.from_pretrained(tmp_path))
    assert (mine.num_heads, mine.gelu, mine.epsilon, mine.grid) == (6, "tanh", 1e-3, (2, 8))
    for text, message in (
        ("{", "config.json must be JSON"),
        ("[]", "must hold an object"),
        (
            '{"hidden_act": "quick_gelu", "num_attention_heads": 3}',
            "`hidden_act` must be one of.*'quick_gelu'",
        ),
        ('{"num_attention_heads": 7}', "divisor of the width.*num_heads=7"),
        ('{"num_attention_heads": "3"}', "divisor of the width.*num_heads='3'"),
        ('{"num_attention_heads": 3, "layer_norm_eps": "a"}', "a small number.*'a'"),
        ('{"num_attention_heads": 3, "layer_norm_eps": -1}', "a small number.*=-1"),
    ):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(InputError, match=message):
            vk.from_pretrained(tmp_path)


WRITABLE = {
    "token": {},
    "gap": {"classifier": "gap"},
    "pre_logits": {"pre_logits": True},
    "features": {"include_top": False},
    "hybrid": {"variant": "R26+S/32", "image_size": (32, 64)},
    "not square": {"image_size": (8, 12)},
}
TO_HUGGING_FACE = {
    "token": {"epsilon": 1e-5},
    "exact": {"gelu": "exact", "image_size": (8, 12)},
    "features": {"include_top": False},
    "DINOv2": {"layer_scale": 0.1, "classifier": "token_gap", "gelu": "exact"},
    "DINOv2 features": {"layer_scale": 0.1, "include_top": False, "num_registers": 2},
}


def randomised(**options):
    options = {"variant": "Ti/4", "image_size": 16, "num_classes": 3, **TINY, **options}
    model = vk.vit(**options)
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(weight + 0.2 * rng.normal(size=weight.shape))
    return model


@pytest.mark.parametrize("kind", WRITABLE)
def test_a_google_file_brings_the_model_back(kind, tmp_path):
    model = randomised(**WRITABLE[kind])
    vk.save_weights(model, tmp_path / "weights.npz")
    names = set(np.load(tmp_path / "weights.npz"))
    assert "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel" in names
    grid = model.get_layer("patch_encoder").grid
    again = vk.from_pretrained(tmp_path / "weights.npz", grid=grid)
    np.testing.assert_allclose(logits(again), logits(model), atol=1e-6)


@pytest.mark.parametrize("kind", TO_HUGGING_FACE)
def test_a_hugging_face_folder_brings_the_model_back(kind, tmp_path):
    model = randomised(**TO_HUGGING_FACE[kind])
    names = None if "features" in kind else ["ant", "bee", "cow"]
    vk.save_weights(model, tmp_path / "out", names)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config.get("id2label", {}).get("1") == (names[1] if names else None)
    again = vk.from_pretrained(tmp_path / "out")
    np.testing.assert_allclose(logits(again), logits(model), atol=1e-6)
    assert again.input_shape == model.input_shape


@pytest.mark.parametrize(
    "options, path, message",
    [
        ({"layer_scale": 0.1, "gelu": "exact"}, "a.npz", "with LayerScale, gelu='exact'"),
        ({"positions": "sincos_2d", "num_registers": 1}, "a.npz", "'sincos_2d', num_registers=1"),
        ({"classifier": "map"}, "folder", "with classifier='map'"),
        ({"classifier": "gap"}, "folder", "with classifier='gap'"),
        ({"num_registers": 1}, "folder", "registers without LayerScale"),
        ({"classifier": "token_gap"}, "folder", "'token_gap' without LayerScale"),
        ({"positions_at": "every_block"}, "a.npz", "with positions_at='every_block'"),
        ({"positions": "relative"}, "a.npz", "with positions='relative'"),
        ({"layer_scale": 1.0, "image_size": (8, 16)}, "folder", "a grid of .2, 4., which is no sq"),
        ({}, "a.safetensors", "`path` must end in .npz, or name a folder"),
    ],
)
def test_what_a_format_does_not_have_is_not_written(options, path, message, tmp_path):
    with pytest.raises(InputError, match=message):
        vk.save_weights(randomised(**options), tmp_path / path)
    assert not list(tmp_path.iterdir())


def test_names_must_be_one_for_each_class_and_a_resnet_stays(tmp_path):
    with pytest.raises(InputError, match="2 names, 3 classes"):
        vk.save_weights(randomised(), tmp_path / "out", ["ant", "bee"])
    with pytest.raises(InputError, match="Only a model made by `vit`.*resnet_r50x1"):
        vk.save_weights(vk.resnet("R50x1", image_size=32, num_classes=2), tmp_path / "a.npz")


@pytest.mark.parametrize(
    "options", [{}, {"positions": "relative"}, {"positions_at": "every_block_shared"}]
)
def test_a_run_directory_and_a_keras_file(options, tmp_path):
    model = randomised(dropout_rate=0.1, **options)
    run = RunDirectory(tmp_path / "run")
    run.create({}, ["ant", "bee", "cow"], {}, {})
    run.save_model(model, "best")
    model.save(tmp_path / "model.keras")
    for path in (tmp_path / "run", tmp_path / "model.keras"):
        np.testing.assert_array_equal(logits(vk.from_pretrained(path)), logits(model))
        size = None if "positions" in options else (8, 24)
        other = vk.from_pretrained(path, num_classes=4, image_size=size, dropout_rate=0.2)
        assert other.get_layer("block_00").dropout_rate == 0.2
        np.testing.assert_array_equal(
            other.get_layer("block_01").mlp_in.kernel, model.get_layer("block_01").mlp_in.kernel
        )
        same = vk.vit("Ti/4", image_size=16, num_classes=3, **TINY, **options)
        assert not vk.load_weights(same, path)["fresh"]
        np.testing.assert_allclose(logits(same), logits(model), atol=1e-6)


def test_a_head_of_other_classes_stays_fresh_and_pre_logits_unused(tmp_path):
    path = write(google, random_arrays(google, facts(pre_logits=True)), tmp_path)
    model = vk.vit("Ti/4", image_size=16, num_classes=9, **TINY)
    report = vk.load_weights(model, path)
    assert sorted(report["fresh"]) == ["head/bias", "head/kernel"]
    assert report["unused"] == [
        "head/bias", "head/kernel", "pre_logits/bias", "pre_logits/kernel",
    ]  # fmt: skip
    assert "4 unused: head/bias" in str(report)
    model = vk.vit("Ti/4", image_size=16, num_classes=5, **TINY)
    with pytest.raises(InputError, match="`pre_logits` of the model must be.*pre_logits=False"):
        vk.load_weights(model, path)


def test_other_numerics_and_a_head_of_zeros_are_said(tmp_path):
    format, expected = FILES["hugging face"]
    path = write(format, random_arrays(format, expected), tmp_path)
    model = vk.vit("Ti/4", image_size=16, num_classes=5, **TINY)
    with pytest.warns(UserWarning) as caught:
        vk.load_weights(model, path)
    said = [str(warning.message) for warning in caught]
    assert "trained with gelu='exact', the model has 'tanh'" in said[0]
    assert "trained with epsilon=1e-12" in said[1]
    arrays = random_arrays(google, SMALL_GOOGLE)
    arrays["head/kernel"][:] = 0
    with pytest.warns(UserWarning, match="head of .* is all zeros.*pretrained on ImageNet-21k"):
        vk.from_pretrained(write(google, arrays, tmp_path))


SMALL_GOOGLE = facts()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"mlp_dim": 32}, r"block_00/mlp_in/kernel \(Transformer/encoderblock_0/MlpBlock_3/Dense_0"
         r"/kernel\): \(24, 48\) against \(24, 32\)"),
        ({"num_layers": 1}, r"block_01/attention/out/bias .*: \(24,\), which the model does not"),
        ({"num_layers": 3}, "block_02/attention_norm/gamma: missing in the source"),
        ({"num_heads": 4}, "num_heads=4, .*weights.npz has 3"),
        ({"classifier": "gap", "num_classes": 7}, "class_token .*which the model does not have"),
        ({"classifier": "gap"}, "classifier='gap', .*weights.npz has 'token'"),
        ({"layer_scale": 0.1}, "attention_scale/gamma: missing"),
        ({"positions": "none"}, "patch_encoder/positions/embedding .*does not have"),
        ({"variant": "R+Ti/16", "image_size": 32}, "stem/root/kernel: missing"),
    ],
)  # fmt: skip
def test_another_model_is_refused_and_stays_as_it_was(options, message, tmp_path):
    path = write(google, random_arrays(google, SMALL_GOOGLE), tmp_path)
    options = {"variant": "Ti/4", "image_size": 16, "num_classes": 5, **TINY, **options}
    model = vk.vit(**options)
    before = model.get_weights()
    with pytest.raises(InputError, match=message):
        vk.load_weights(model, path)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_resnet_and_a_vit_are_told_apart(tmp_path):
    path = write(google, random_arrays(google, SMALL_GOOGLE), tmp_path)
    with pytest.raises(InputError, match="of a Vit, and resnet_r50x1, a ResNet"):
        vk.load_weights(vk.resnet("R50x1", image_size=32, num_classes=5), path)
    dense = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    with pytest.raises(InputError, match="must be made by `vit` or `resnet`"):
        vk.load_weights(dense, path)


def npz_member(shape, descr="<f4", data=b"", version=1):
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H", len(header)) + header + data


def broken_files(folder):
    """Yields name, path and what the sentence must say."""
    arrays = random_arrays(google, SMALL_GOOGLE)
    good = write(google, arrays, folder).read_bytes()
    torch = random_arrays(*FILES["timm"])
    whole = write(timm, torch, folder).read_bytes()

    def put(name, content):
        (folder / name).write_bytes(content)
        return folder / name

    def archive(name, members, compression=zipfile.ZIP_STORED):
        with zipfile.ZipFile(folder / name, "w", compression) as file:
            for member, content in members:
                file.writestr(member, content)
        return folder / name

    terabyte = (10**6, 250_000)
    for share in (0.1, 0.5, 0.99):
        yield "npz cut", put(f"cut{share}.npz", good[: int(share * len(good))]), "cut short"
        cut = put(f"cut{share}.safetensors", whole[: int(share * len(whole))])
        yield "safetensors cut", cut, "cut short"
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 0xFF
    yield "npz with a flipped bit", put("flipped.npz", bytes(flipped)), "damaged"
    np.savez(folder / "pickle.npz", **{**arrays, "cls": np.array([{}], dtype=object)})
    yield "npz with a pickle", folder / "pickle.npz", "cls: it is a pickle"
    member = npz_member(terabyte)
    declared = "declares 1,000,000,000,000 bytes, but 0 follow"
    yield "a terabyte", archive("tera.npz", [("embedding/kernel.npy", member)]), declared
    negative = npz_member((-1, 4))
    yield "a negative side", archive("minus.npz", [("a.npy", negative)]), r"shape is \(-1, 4\)"
    with pytest.warns(UserWarning, match="Duplicate"):
        twice = archive("twice.npz", [("a.npy", npz_member((0,)))] * 2)
    yield "twice", twice, "is in it twice"
    zeros = npz_member((2**26,), data=bytes(2**28))
    bomb = archive("bomb.npz", [("a.npy", zeros)], zipfile.ZIP_DEFLATED)
    yield "a bomb", bomb, "would grow to"
    lie = bytearray(bomb.read_bytes())
    at = lie.rindex(b"PK\x01\x02") + 24  # the size, in the directory at the end
    lie[at : at + 4] = struct.pack("<I", 2**32 - 2)
    yield "a lying directory", put("lie.npz", bytes(lie)), "which cannot be"
    yield "no NumPy", archive("text.npz", [("a.npy", b"hello")]), "a: .*magic"
    torch_zip = archive("model.bin", [("model/data.pkl", b"x")])
    yield "torch zip", torch_zip, "torch pickle, which could run"
    yield "pickle", put("old.bin", pickle.dumps(arrays, 4)), "torch pickle, which could run"

    def safetensors(name, header, data=b"", length=None):
        text = json.dumps(header).encode()
        size = struct.pack("<Q", len(text) if length is None else length)
        return put(name, size + text + data)

    tensor = {"dtype": "F32", "shape": list(terabyte), "data_offsets": [0, 10**12]}
    yield "a terabyte too", safetensors("tera.safetensors", {"a": tensor}), "cut short"
    huge = safetensors("header.safetensors", {}, length=2**40)
    yield "a huge header", huge, "damaged"
    wrong = {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}
    yield "sizes that differ", safetensors("size.safetensors", {"a": wrong}, bytes(8)), "damaged"
    yield "empty", put("empty.npz", b""), "first bytes"
    yield "text", put("text.txt", b"not weights at all"), "first bytes"
    yield "hdf5", put("old.h5", b"\x89HDF\r\n\x1a\n0000"), "first bytes"
    yield "missing", folder / "nothing.npz", "where nothing is"
    (folder / "empty").mkdir()
    yield "a folder", folder / "empty", "has no model.safetensors but nothing"
    np.savez(folder / "other.npz", a=np.zeros(3))
    yield "other names", folder / "other.npz", "no such format: a"
    save_file({"a": np.zeros(3)}, folder / "other.safetensors")
    yield "other names too", folder / "other.safetensors", "no such format: a"


def test_broken_files_give_a_sentence_at_once_and_take_no_memory(tmp_path):
    model = vk.vit("Ti/4", image_size=16, num_classes=5, **TINY)
    before = model.get_weights()
    count = 0
    for name, path, message in broken_files(tmp_path):
        for use in (lambda path: vk.load_weights(model, path), vk.from_pretrained):
            tracemalloc.start()
            start = time.perf_counter()
            with pytest.raises(InputError, match=message) as raised:
                use(path)
            seconds = time.perf_counter() - start
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert seconds < 1 and peak < 2**24, (name, seconds, peak)
            assert str(path) in str(raised.value), name
            count += 1
    assert count == 2 * 26
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda a: a.update({"head/bias": np.zeros((5, 1), "f4")}), r"head/bias: \(5, 1\), where"),
        (lambda a: a.update({"cls": np.zeros((1, 24, 1), "f4")}), r"cls: \(1, 24, 1\), where \(1,"),
        (lambda a: a.pop("Transformer/encoder_norm/bias"), r"encoder_norm/bias \(24,\): missing"),
        (lambda a: a.update({"Transformer/encoderblock_7/x": np.zeros(3)}), r"x \(3,\): unknown"),
        (lambda a: a.update({"head/bias": np.full(5, np.nan, "f4")}), "finite.*head/bias"),
        (lambda a: a.update({"head/bias": np.zeros(5, "i4")}), "type among float16.*int32"),
        (lambda a: a.update({"embedding/kernel": np.zeros((4, 4), "f4")}), "with 4 axes"),
        (lambda a: a.pop("Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel"), "it is missing"),
    ],
)
def test_swapped_missing_and_unknown_arrays_are_named(change, message, tmp_path):
    arrays = random_arrays(google, SMALL_GOOGLE)
    change(arrays)
    path = write(google, arrays, tmp_path)
    for use in (
        vk.from_pretrained,
        lambda path: vk.load_weights(vk.vit("Ti/4", image_size=16, num_classes=5, **TINY), path),
    ):
        with pytest.raises(InputError, match=message):
            use(path)


def test_what_a_file_may_have_beside_is_left(tmp_path):
    format, expected = FILES["hugging face, DINOv2"]
    arrays = random_arrays(format, expected) | {"embeddings.mask_token": np.zeros((1, 24), "f4")}
    vk.from_pretrained(write(format, arrays, tmp_path), num_heads=3)
    format, expected = FILES["big_vision"]
    plain = random_arrays(format, expected)
    arrays = {k.replace("params/", "opt/target/"): v for k, v in plain.items()}
    arrays["opt/state/step"] = np.zeros((), "i4")
    vk.from_pretrained(write(format, arrays, tmp_path))


def test_an_unknown_number_of_heads_is_asked_for(tmp_path):
    path = write(timm, random_arrays(*FILES["timm"]), tmp_path)
    with pytest.raises(InputError, match="does not tell its number of heads.*of width 24"):
        vk.from_pretrained(path)
    wide = dataclasses.replace(FILES["timm"][1], hidden_dim=128, num_heads=2)
    path = write(timm, random_arrays(timm, wide), tmp_path)
    with pytest.warns(UserWarning, match="number of heads of .* was guessed, 2"):
        model = vk.from_pretrained(path)
    assert model.get_layer("block_00").num_heads == 2  # one for each 64


@pytest.mark.parametrize(
    "config, extra, message",
    [
        ({"global_pool": "avg"}, {}, "global_pool='avg' and a class token"),
        ({}, {"fc_norm.weight": np.zeros(24, "f4")}, "fc_norm and cls_token"),
        ({}, {"norm_pre.weight": np.zeros(24, "f4")}, r"norm_pre.weight \(24,\): unknown"),
    ],
)
def test_timm_models_of_another_kind_are_refused(config, extra, message, tmp_path):
    arrays = random_arrays(*FILES["timm"]) | extra
    write(timm, arrays, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=message):
        vk.from_pretrained(tmp_path, num_heads=3)


def test_hybrids_of_other_units_are_refused(tmp_path):
    odd = facts(patch_size=1, num_units=(1, 1), grid=(2, 2))
    path = write(google, random_arrays(google, odd), tmp_path)
    with pytest.raises(InputError, match=r"A hybrid must be one of R\+Ti/16.*units \(1, 1\)"):
        vk.from_pretrained(path)
    small = bit.ResNetFacts((1, 1), 1, 5)
    path = write(bit, random_arrays(bit, small), tmp_path)
    with pytest.raises(InputError, match=r"must be one of R50x1.*units \(1, 1\)"):
        vk.from_pretrained(path)


def test_reading_an_array_is_what_numpy_reads():
    # Fortran order, and an axis of length 1.
    import tempfile
    from pathlib import Path

    from vitkeras.weights.arrays import open_npz

    value = np.asfortranarray(np.random.default_rng(0).normal(size=(3, 1, 4)).astype("f4"))
    with tempfile.TemporaryDirectory() as folder:
        buffer = io.BytesIO()
        np.savez(buffer, a=value)
        path = Path(folder) / "a.npz"
        path.write_bytes(buffer.getvalue())
        with open_npz(path) as arrays:
            np.testing.assert_array_equal(arrays.read("a"), value)
