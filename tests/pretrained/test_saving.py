"""`save_weights`: files that other libraries load, and that load here again."""

import json

import numpy as np
import pytest
from helpers.weight_files import logits, randomized

import vitkeras as vk
from vitkeras.errors import InputError

TO_GOOGLE = {
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


@pytest.mark.parametrize("kind", TO_GOOGLE)
def test_a_google_file_restores_the_model(kind, tmp_path):
    model = randomized(**TO_GOOGLE[kind])
    vk.save_weights(model, tmp_path / "weights.npz")
    names = set(np.load(tmp_path / "weights.npz"))
    assert "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel" in names
    again = vk.from_pretrained(tmp_path / "weights.npz", grid=model.config.grid)
    np.testing.assert_allclose(logits(again), logits(model), atol=1e-6)


@pytest.mark.parametrize("kind", TO_HUGGING_FACE)
def test_a_hugging_face_folder_restores_the_model(kind, tmp_path):
    model = randomized(**TO_HUGGING_FACE[kind])
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
        ({"layer_scale": 0.1, "gelu": "exact"}, "a.npz", "layer_scale=0.1, gelu=exact"),
        ({"positions": "sincos_2d", "num_registers": 1}, "a.npz", "sincos_2d, num_registers=1"),
        ({"classifier": "map"}, "folder", "classifier=map"),
        ({"classifier": "gap"}, "folder", "classifier=gap"),
        ({"num_registers": 1}, "folder", "registers without LayerScale"),
        ({"classifier": "token_gap"}, "folder", "token_gap without LayerScale"),
        ({"positions_at": "every_block"}, "a.npz", "positions_at=every_block"),
        ({"positions": "relative"}, "a.npz", "positions=relative"),
        ({"layer_scale": 1.0, "image_size": (8, 16)}, "folder", r"non-square grid \(2, 4\)"),
        ({"channels": 1}, "a.npz", "channels=1"),
        ({"channels": 1}, "folder", "channels=1"),
        ({}, "a.safetensors", "`path`"),
        ({}, "a.keras", "`path`"),
        ({}, "", "`path`"),
    ],
)
def test_an_unsupported_model_or_path_is_refused(options, path, message, tmp_path):
    with pytest.raises(InputError, match=message):
        vk.save_weights(randomized(**options), path and tmp_path / path)
    assert not list(tmp_path.iterdir())


def test_class_names_must_fit_and_a_resnet_is_refused(tmp_path):
    with pytest.raises(InputError, match="2 names, 3 classes"):
        vk.save_weights(randomized(), tmp_path / "out", ["ant", "bee"])
    with pytest.raises(InputError, match="`vit`.*resnet_r50x1"):
        vk.save_weights(vk.resnet("R50x1", image_size=32, num_classes=2), tmp_path / "a.npz")
