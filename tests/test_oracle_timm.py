"""timm as the oracle: its weights in; ours, and Google's and big_vision's files, into it."""

import functools

import keras
import numpy as np
import pytest
from conftest import TINY, import_timm
from test_weights import facts, random_arrays

import vitkeras as vk
from vitkeras.weights import big_vision, flax, google

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
    "registers with places": {"init_values": 0.1, "reg_tokens": 2},
}
TANH = {"act_layer": functools.partial(torch.nn.GELU, approximate="tanh")}
IMAGES = {"native": (16, 16), "resized": (24, 20)}


def randomise(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.3, generator=generator)
    return model.eval()


def theirs(model, images):
    with torch.no_grad():
        return model(torch.tensor(images).permute(0, 3, 1, 2)).numpy()


def ours(model, images):
    return keras.ops.convert_to_numpy(model(images))


def check(model, mine, seed=1):
    rng = np.random.default_rng(seed)
    images = rng.uniform(-1, 1, (2, *mine.input_shape[1:])).astype("float32")
    expected = theirs(model.eval(), images)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(ours(mine, images), expected, atol=1e-4 * max(1, np.ptp(expected)))


@pytest.mark.parametrize("size", IMAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_their_weights_give_their_numbers(kind, size, tmp_path):
    model = randomise(VisionTransformer(img_size=16, **SIZES, **KINDS[kind]))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    if size == "resized":
        larger = VisionTransformer(img_size=IMAGES[size], **SIZES, **KINDS[kind])
        larger.load_state_dict(checkpoint_filter_fn(model.state_dict(), larger))
        model = larger
    mine = vk.from_pretrained(tmp_path / "model.safetensors", image_size=IMAGES[size], num_heads=3)
    check(model, mine)


def randomised(**options):
    options = {"variant": "Ti/4", "image_size": 16, "num_classes": 5, **TINY, **options}
    mine = vk.vit(**options)
    rng = np.random.default_rng(0)
    for weight in mine.weights:
        weight.assign(weight + 0.3 * rng.normal(size=weight.shape))
    return mine


@pytest.mark.parametrize("classifier", ["token", "gap"])
@pytest.mark.parametrize("size", IMAGES)
def test_our_google_files_give_our_numbers(classifier, size, tmp_path):
    mine = randomised(classifier=classifier)
    vk.save_weights(mine, tmp_path / "weights.npz")
    kind = {} if classifier == "token" else KINDS["gap, norm before"]
    model = VisionTransformer(img_size=IMAGES[size], **SIZES, **kind, **TANH)
    model.load_pretrained(str(tmp_path / "weights.npz"))
    if size == "resized":  # timm's convention on .npz files
        mine = vk.from_pretrained(
            tmp_path / "weights.npz", image_size=IMAGES[size], resize="bilinear"
        )
    check(model, mine)


@pytest.mark.parametrize(
    "name, num_units, patch_size, grid, sizes",
    [
        ("vit_tiny_r_s16_p8_224", (), 8, (7, 7), (192, 768, 3)),
        ("vit_small_r26_s32_224", (2, 2, 2, 2), 1, (7, 7), (384, 1536, 6)),
    ],
)
def test_hybrid_files_give_the_same_numbers_in_both(
    name, num_units, patch_size, grid, sizes, tmp_path
):
    hidden_dim, mlp_dim, num_heads = sizes
    hybrid = facts(
        hidden_dim=hidden_dim, mlp_dim=mlp_dim, num_heads=num_heads, num_layers=12,
        num_units=num_units, patch_size=patch_size, grid=grid,
    )  # fmt: skip
    arrays = random_arrays(google, hybrid)
    for key, value in arrays.items():  # as large as they are in trained ones
        if "kernel" in key and "conv" not in key:
            value *= 0.2
        elif key.endswith("scale"):
            value += 1
    np.savez(tmp_path / "weights.npz", **arrays)
    model = timm.create_model(name, pretrained=False, num_classes=5, **TANH)
    model.load_pretrained(str(tmp_path / "weights.npz"))
    check(model, vk.from_pretrained(tmp_path / "weights.npz"))


@pytest.mark.parametrize("classifier", ["gap", "map"])
def test_big_vision_files_give_the_same_numbers_in_both(classifier, tmp_path):
    file = facts(("params/", flax.BY_CLASS), classifier=classifier)
    np.savez(tmp_path / "weights.npz", **random_arrays(big_vision, file))
    pool = {"global_pool": "map"} if classifier == "map" else {"global_pool": "avg"}
    model = VisionTransformer(
        img_size=16, **SIZES, **TANH, class_token=False, fc_norm=False, **pool
    )
    model.load_pretrained(str(tmp_path / "weights.npz"))
    check(model, vk.from_pretrained(tmp_path / "weights.npz"))


def test_the_class_token_of_big_vision_has_no_position(tmp_path):
    file = facts(("", flax.BY_CLASS))
    arrays = random_arrays(big_vision, file)
    np.savez(tmp_path / "weights.npz", **arrays)
    model = VisionTransformer(img_size=16, **SIZES, **TANH, no_embed_class=True)
    # timm knows such files without a class token only: the same as one of Google's.
    renamed = {"pos_embedding": "Transformer/posembed_input/pos_embedding"}
    for name in arrays:
        if "encoderblock" in name:
            google_name = name
            for old, new in zip(flax.BY_CLASS, flax.IN_ORDER, strict=True):
                google_name = google_name.replace(f"/{old}/", f"/{new}/")
            renamed[name] = google_name
    as_google = {renamed.get(name, name): value for name, value in arrays.items()}
    np.savez(tmp_path / "google.npz", **as_google)
    model.load_pretrained(str(tmp_path / "google.npz"))
    check(model, vk.from_pretrained(tmp_path / "weights.npz"))


def test_bit_files_give_the_same_numbers_in_both(tmp_path):
    from vitkeras.weights import bit

    file = bit.ResNetFacts((3, 4, 6, 3), 1, 5)
    arrays = random_arrays(bit, file)
    for key, value in arrays.items():
        if key.endswith("gamma"):
            value += 1
    np.savez(tmp_path / "weights.npz", **arrays)
    model = timm.create_model("resnetv2_50x1_bit", pretrained=False, num_classes=5)
    model.load_pretrained(str(tmp_path / "weights.npz"))
    check(model, vk.from_pretrained(tmp_path / "weights.npz", image_size=(70, 96)))
