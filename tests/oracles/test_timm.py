"""timm as the reference, for its own files and for Google, big_vision and BiT files."""

import functools

import keras
import numpy as np
import pytest
from helpers.torch_models import import_timm, randomize
from helpers.weight_files import random_arrays, randomized, spec

import vitkeras as vk
from vitkeras.models.config import ResNetConfig
from vitkeras.pretrained.formats import big_vision, bit, flax, google
from vitkeras.pretrained.mapping import PretrainedSpec

timm = import_timm()
torch = pytest.importorskip("torch")
from safetensors.torch import save_file  # noqa: E402
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
SIZES = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_ratio": 2,
         "num_classes": 5}  # fmt: skip
KINDS = {
    "token": {},
    "gap, norm after": {"class_token": False, "global_pool": "avg"},
    "gap, norm before": {"class_token": False, "global_pool": "avg", "fc_norm": False},
    "LayerScale, registers": {"init_values": 0.1, "reg_tokens": 2, "no_embed_class": True},
    "registers with positions": {"init_values": 0.1, "reg_tokens": 2},
}
TANH = {"act_layer": functools.partial(torch.nn.GELU, approximate="tanh")}
IMAGES = {"native": (16, 16), "resized": (24, 20)}


def check(reference, model):
    """Compares the logits of a timm model and a model of this package."""
    pixels = np.random.default_rng(1).integers(0, 256, (2, *model.input_shape[1:]))
    normalized = torch.tensor((pixels / 127.5 - 1).astype("float32")).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = reference.eval()(normalized).numpy()
    assert np.ptp(expected) > 0.1
    logits = keras.ops.convert_to_numpy(model(pixels))
    np.testing.assert_allclose(logits, expected, atol=1e-4 * max(1, np.ptp(expected)))


@pytest.mark.parametrize("size", IMAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_timm_files_give_the_logits_of_timm(kind, size, tmp_path):
    reference = randomize(VisionTransformer(img_size=16, **SIZES, **KINDS[kind]))
    save_file(reference.state_dict(), tmp_path / "model.safetensors")
    if size == "resized":
        larger = VisionTransformer(img_size=IMAGES[size], **SIZES, **KINDS[kind])
        larger.load_state_dict(checkpoint_filter_fn(reference.state_dict(), larger))
        reference = larger
    model = vk.from_pretrained(tmp_path / "model.safetensors", image_size=IMAGES[size], num_heads=3)
    check(reference, model)


@pytest.mark.parametrize("classifier", ["token", "gap"])
@pytest.mark.parametrize("size", IMAGES)
def test_saved_google_files_give_the_same_logits_in_timm(classifier, size, tmp_path):
    model = randomized(classifier=classifier, num_classes=5)
    vk.save_weights(model, tmp_path / "weights.npz")
    kind = {} if classifier == "token" else KINDS["gap, norm before"]
    reference = VisionTransformer(img_size=IMAGES[size], **SIZES, **kind, **TANH)
    reference.load_pretrained(str(tmp_path / "weights.npz"))
    if size == "resized":  # timm's convention on .npz files
        model = vk.from_pretrained(
            tmp_path / "weights.npz", image_size=IMAGES[size], resize="bilinear"
        )
    check(reference, model)


@pytest.mark.parametrize(
    "name, stem_units, patch_size, grid, sizes",
    [
        ("vit_tiny_r_s16_p8_224", (), 8, (7, 7), (192, 768, 3)),
        ("vit_small_r26_s32_224", (2, 2, 2, 2), 1, (7, 7), (384, 1536, 6)),
    ],
)
def test_hybrid_files_give_the_same_logits_in_both(
    name, stem_units, patch_size, grid, sizes, tmp_path
):
    hidden_dim, mlp_dim, num_heads = sizes
    hybrid = spec(
        hidden_dim=hidden_dim, mlp_dim=mlp_dim, num_heads=num_heads, num_layers=12,
        stem_units=stem_units, patch_size=patch_size, grid=grid,
    )  # fmt: skip
    arrays = random_arrays(google, hybrid)
    for key, value in arrays.items():  # of the magnitude in trained models
        if "kernel" in key and "conv" not in key:
            value *= 0.2
        elif key.endswith("scale"):
            value += 1
    np.savez(tmp_path / "weights.npz", **arrays)
    reference = timm.create_model(name, pretrained=False, num_classes=5, **TANH)
    reference.load_pretrained(str(tmp_path / "weights.npz"))
    check(reference, vk.from_pretrained(tmp_path / "weights.npz"))


@pytest.mark.parametrize("classifier", ["gap", "map"])
def test_big_vision_files_give_the_same_logits_in_both(classifier, tmp_path):
    file = spec(("params/", flax.BY_CLASS), classifier=classifier)
    np.savez(tmp_path / "weights.npz", **random_arrays(big_vision, file))
    pool = {"global_pool": "map"} if classifier == "map" else {"global_pool": "avg"}
    reference = VisionTransformer(
        img_size=16, **SIZES, **TANH, class_token=False, fc_norm=False, **pool
    )
    reference.load_pretrained(str(tmp_path / "weights.npz"))
    check(reference, vk.from_pretrained(tmp_path / "weights.npz"))


def test_the_class_token_of_big_vision_has_no_position(tmp_path):
    file = spec(("", flax.BY_CLASS))
    arrays = random_arrays(big_vision, file)
    np.savez(tmp_path / "weights.npz", **arrays)
    reference = VisionTransformer(img_size=16, **SIZES, **TANH, no_embed_class=True)
    # timm reads such files without a class token only: renamed to a Google file.
    renamed = {"pos_embedding": "Transformer/posembed_input/pos_embedding"}
    for name in arrays:
        if "encoderblock" in name:
            google_name = name
            for old, new in zip(flax.BY_CLASS, flax.BY_POSITION, strict=True):
                google_name = google_name.replace(f"/{old}/", f"/{new}/")
            renamed[name] = google_name
    as_google = {renamed.get(name, name): value for name, value in arrays.items()}
    np.savez(tmp_path / "google.npz", **as_google)
    reference.load_pretrained(str(tmp_path / "google.npz"))
    check(reference, vk.from_pretrained(tmp_path / "weights.npz"))


def test_bit_files_give_the_same_logits_in_both(tmp_path):
    file = PretrainedSpec(ResNetConfig((3, 4, 6, 3), num_classes=5))
    arrays = random_arrays(bit, file)
    for key, value in arrays.items():
        if key.endswith("gamma"):
            value += 1
    np.savez(tmp_path / "weights.npz", **arrays)
    reference = timm.create_model("resnetv2_50x1_bit", pretrained=False, num_classes=5)
    reference.load_pretrained(str(tmp_path / "weights.npz"))
    check(reference, vk.from_pretrained(tmp_path / "weights.npz", image_size=(70, 96)))
