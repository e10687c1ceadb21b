"""transformers as the reference: loading its files and saving files for it."""

import keras
import numpy as np
import pytest
from helpers.models import TINY
from helpers.torch_models import randomize

import vitkeras as vk
from vitkeras.pretrained import INCEPTION_MEAN_STD
from vitkeras.pretrained.resizing import resize_positions

REASON = "the extra `transformers` is not installed; it needs its own environment, see .ci/run"
torch = pytest.importorskip("torch", reason=REASON)
transformers = pytest.importorskip("transformers", reason=REASON)
# transformers warns on import and on loading.
pytestmark = pytest.mark.filterwarnings("ignore")

SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "patch_size": 4}
IMAGES = {"native": (16, 16), "resized": (24, 20)}


def vit_config(**changes):
    """Returns the config of a small ViT."""
    return transformers.ViTConfig(
        **SIZES, intermediate_size=48, image_size=16, num_labels=5, **changes
    )


def dino_config(kind, **changes):
    """Returns the config of a small DINOv2."""
    return kind(**SIZES, mlp_ratio=2, image_size=16, num_labels=5, **changes)


def kinds():
    """Returns a model of each kind."""
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


def run_reference(model, pixels):
    """Returns logits, or all tokens after the last norm, of a torch model."""
    images = torch.tensor((pixels / 127.5 - 1).astype("float32")).permute(0, 3, 1, 2)
    resized = pixels.shape[1:3] not in ((16, 16), (24, 16))
    options = {"interpolate_pos_encoding": resized} if "ViT" in type(model).__name__ else {}
    with torch.no_grad():
        out = model(images, **options)
    return (out.logits if hasattr(out, "logits") else out.last_hidden_state).numpy()


def random_pixels(height, width):
    """Returns two random images."""
    return np.random.default_rng(0).integers(0, 256, (2, height, width, 3))


def run(model, pixels, tokens=False):
    """Returns logits, or all tokens after the last norm, of a model of this package."""
    if tokens:
        model = keras.Model(model.input, model.get_layer("norm").output)
    return keras.ops.convert_to_numpy(model(pixels))


@pytest.mark.parametrize("size", IMAGES)
@pytest.mark.parametrize("kind", ["ViT", "ViT, tanh", "ViT, bare", "DINOv2", "DINOv2, bare",
                                  "DINOv2, registers"])  # fmt: skip
def test_files_give_the_logits_of_transformers(kind, size, tmp_path):
    model = randomize(kinds()[kind])
    model.save_pretrained(tmp_path)
    pixels = random_pixels(*IMAGES[size])
    converted = vk.from_pretrained(tmp_path, image_size=IMAGES[size], mean_std=INCEPTION_MEAN_STD)
    expected = run_reference(model, pixels)
    assert np.ptp(expected) > 0.5
    out = run(converted, pixels, tokens=expected.ndim == 3)
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
def test_saved_files_give_the_same_logits_in_transformers(options, tmp_path):
    saved = vk.vit("Ti/4", **{"image_size": 16, "num_classes": 3, **TINY, **options})
    rng = np.random.default_rng(0)
    for weight in saved.weights:
        weight.assign(weight + 0.3 * rng.normal(size=weight.shape))
    vk.save_weights(saved, tmp_path, ["ant", "bee", "cow"])
    model, info = transformers.AutoModelForImageClassification.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(info.values()), info
    assert model.config.id2label == {0: "ant", 1: "bee", 2: "cow"}
    pixels = random_pixels(*saved.input_shape[1:3])
    expected = run_reference(model.eval(), pixels)
    np.testing.assert_allclose(run(saved, pixels), expected, atol=1e-4)
    if saved.input_shape[1] == saved.input_shape[2]:  # transformers resizes only square grids
        larger = vk.from_pretrained(tmp_path, image_size=(28, 20))
        pixels = random_pixels(28, 20)
        np.testing.assert_allclose(run(larger, pixels), run_reference(model, pixels), atol=1e-4)


def test_features_are_saved_as_a_model_without_a_head(tmp_path):
    for options in ({}, {"layer_scale": 0.1}):
        saved = vk.vit("Ti/4", image_size=16, include_top=False, **TINY, **options)
        vk.save_weights(saved, tmp_path / str(len(options)))
        model, info = transformers.AutoModel.from_pretrained(
            tmp_path / str(len(options)), output_loading_info=True
        )
        missing = {name for name in info.pop("missing_keys") if "pooler" not in name}
        assert not missing and not any(info.values()), info
        pixels = random_pixels(16, 16)
        expected = run_reference(model.eval(), pixels)[:, 0]
        np.testing.assert_allclose(run(saved, pixels), expected, atol=1e-4)


@pytest.mark.parametrize("old, new", [((4, 4), (7, 7)), ((3, 5), (6, 2)), ((14, 14), (24, 37))])
def test_resizing_is_that_of_torch(old, new):
    embeddings = np.random.default_rng(0).normal(size=(2, old[0] * old[1], 3))
    maps = torch.tensor(embeddings.reshape(2, *old, 3)).permute(0, 3, 1, 2)
    for resize, mode, antialias in (
        ("bilinear", "bilinear", False),
        ("bicubic", "bicubic", False),
        ("bicubic_antialias", "bicubic", True),
    ):
        expected = torch.nn.functional.interpolate(
            maps, new, mode=mode, antialias=antialias, align_corners=False
        )
        expected = expected.permute(0, 2, 3, 1).reshape(2, -1, 3).numpy()
        resized = resize_positions(embeddings, old, new, resize=resize)
        np.testing.assert_allclose(resized, expected, atol=1e-6)
