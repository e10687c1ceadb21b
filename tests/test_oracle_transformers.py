"""Hugging Face transformers as the oracle: their weights in, ours out, at several resolutions."""

import keras
import numpy as np
import pytest
from conftest import TINY

import vitkeras as vk
from vitkeras.weights import HALF

REASON = "transformers and torch have an environment of their own, see .ci/run"
torch = pytest.importorskip("torch", reason=REASON)
transformers = pytest.importorskip("transformers", reason=REASON)
# What it warns of on import and on loading is no matter of ours.
pytestmark = pytest.mark.filterwarnings("ignore")

SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "patch_size": 4}
IMAGES = {"native": (16, 16), "resized": (24, 20)}


def randomise(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.3, generator=generator)
    return model.eval()


def vit_config(**changes):
    return transformers.ViTConfig(
        **SIZES, intermediate_size=48, image_size=16, num_labels=5, **changes
    )


def dino_config(kind, **changes):
    return kind(**SIZES, mlp_ratio=2, image_size=16, num_labels=5, **changes)


def kinds():
    t = transformers
    return {
        "ViT": t.ViTForImageClassification(vit_config()),
        "ViT, tanh": t.ViTForImageClassification(
            vit_config(hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-3)
        ),
        "ViT, bare": t.ViTModel(vit_config()),
        "DINOv2": t.Dinov2ForImageClassification(dino_config(t.Dinov2Config)),
        "DINOv2, bare": t.Dinov2Model(dino_config(t.Dinov2Config)),
        "DINOv2, registers": t.Dinov2WithRegistersForImageClassification(
            dino_config(t.Dinov2WithRegistersConfig, num_register_tokens=2)
        ),
    }


def theirs(model, images):
    """Returns logits, or all tokens after the last norm."""
    pixels = torch.tensor(images).permute(0, 3, 1, 2)
    resized = images.shape[1:3] not in ((16, 16), (24, 16))
    options = {"interpolate_pos_encoding": resized} if "ViT" in type(model).__name__ else {}
    with torch.no_grad():
        out = model(pixels, **options)
    return (out.logits if hasattr(out, "logits") else out.last_hidden_state).numpy()


def ours(model, images, tokens=False):
    if tokens:
        model = keras.Model(model.input, model.get_layer("norm").output)
    return keras.ops.convert_to_numpy(model(images))


@pytest.mark.parametrize("size", IMAGES)
@pytest.mark.parametrize("kind", ["ViT", "ViT, tanh", "ViT, bare", "DINOv2", "DINOv2, bare",
                                  "DINOv2, registers"])  # fmt: skip
def test_their_weights_give_their_numbers(kind, size, tmp_path):
    model = randomise(kinds()[kind])
    model.save_pretrained(tmp_path)
    images = np.random.default_rng(0).normal(size=(2, *IMAGES[size], 3)).astype("float32")
    mine = vk.from_pretrained(tmp_path, image_size=IMAGES[size], mean_std=HALF)
    expected = theirs(model, images)
    assert np.ptp(expected) > 0.5
    out = ours(mine, images, tokens=expected.ndim == 3)
    np.testing.assert_allclose(out, expected, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gelu": "exact", "epsilon": 1e-12, "image_size": (24, 16)},
        {"layer_scale": 0.1, "gelu": "exact"},
        {"layer_scale": 0.1, "classifier": "token_gap"},
        {"layer_scale": 0.1, "num_registers": 2, "gelu": "exact"},
    ],
)
def test_our_weights_give_our_numbers(options, tmp_path):
    mine = vk.vit("Ti/4", **{"image_size": 16, "num_classes": 3, **TINY, **options})
    rng = np.random.default_rng(0)
    for weight in mine.weights:
        weight.assign(weight + 0.3 * rng.normal(size=weight.shape))
    vk.save_weights(mine, tmp_path, ["ant", "bee", "cow"])
    model, info = transformers.AutoModelForImageClassification.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(info.values()), info
    assert model.config.id2label == {0: "ant", 1: "bee", 2: "cow"}
    images = rng.uniform(-1, 1, (2, *mine.input_shape[1:])).astype("float32")
    np.testing.assert_allclose(theirs(model.eval(), images), ours(mine, images), atol=1e-4)
    if mine.input_shape[1] == mine.input_shape[2]:  # transformers resizes from squares alone
        larger = vk.from_pretrained(tmp_path, image_size=(28, 20))
        images = rng.uniform(-1, 1, (2, 28, 20, 3)).astype("float32")
        np.testing.assert_allclose(theirs(model, images), ours(larger, images), atol=1e-4)


def test_our_features_are_a_bare_model(tmp_path):
    for options in ({}, {"layer_scale": 0.1}):
        mine = vk.vit("Ti/4", image_size=16, include_top=False, **TINY, **options)
        vk.save_weights(mine, tmp_path / str(len(options)))
        model, info = transformers.AutoModel.from_pretrained(
            tmp_path / str(len(options)), output_loading_info=True
        )
        missing = {name for name in info.pop("missing_keys") if "pooler" not in name}
        assert not missing and not any(info.values()), info
        images = np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)).astype("float32")
        np.testing.assert_allclose(
            theirs(model.eval(), images)[:, 0], ours(mine, images), atol=1e-4
        )


@pytest.mark.parametrize("old, new", [((4, 4), (7, 7)), ((3, 5), (6, 2)), ((14, 14), (24, 37))])
def test_resizes_are_torchs(old, new):
    from vitkeras.positions import resize_positions

    places = np.random.default_rng(0).normal(size=(2, old[0] * old[1], 3))
    maps = torch.tensor(places.reshape(2, *old, 3)).permute(0, 3, 1, 2)
    for resize, mode, antialias in (
        ("bilinear", "bilinear", False),
        ("bicubic", "bicubic", False),
        ("bicubic_antialias", "bicubic", True),
    ):
        expected = torch.nn.functional.interpolate(
            maps, new, mode=mode, antialias=antialias, align_corners=False
        )
        expected = expected.permute(0, 2, 3, 1).reshape(2, -1, 3).numpy()
        resized = resize_positions(places, old, new, resize=resize)
        np.testing.assert_allclose(resized, expected, atol=1e-6)
