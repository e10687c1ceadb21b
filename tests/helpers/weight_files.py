"""Weight files of every format, with random arrays."""

import dataclasses

import keras
import numpy as np
from safetensors.numpy import save_file

import vitkeras as vk
from helpers.models import TINY
from vitkeras.models.config import ResNetConfig, ViTConfig
from vitkeras.pretrained.formats import big_vision, bit, flax, google, hugging_face, timm
from vitkeras.pretrained.mapping import IMAGENET_MEAN_STD, PretrainedSpec

SMALL = ViTConfig(
    hidden_dim=24, mlp_dim=48, num_heads=3, num_layers=2, patch_size=4, image_size=16, num_classes=5
)
VIT, DINO = (("vit.", hugging_face.VIT), ("", hugging_face.DINO))


def spec(
    naming=("", flax.BY_POSITION), grid=(4, 4), position_resize="zoom", mean_std=None, **fields
):
    """Returns the spec of a small file; `fields` change its `ViTConfig`."""
    stride = fields.get("patch_size", 4) * (1 if fields.get("stem_units") is None else 4)
    if fields.get("stem_units"):
        stride *= 2 ** (len(fields["stem_units"]) - 1)
    size = (grid[0] * stride, grid[1] * stride)
    config = dataclasses.replace(SMALL, image_size=size, **fields)
    options = {} if mean_std is None else {"mean_std": mean_std}
    return PretrainedSpec(config, position_resize=position_resize, naming=naming, **options)


def torch_spec(naming, **changes):
    """Returns the spec of a small torch file."""
    return spec(naming, **{"gelu": "exact", "position_resize": "bicubic_antialias", **changes})


FILES = {
    "google": (google, spec()),
    "google, not square": (google, spec(grid=(2, 3))),
    "google, numbered by class": (google, spec(("", flax.BY_CLASS))),
    "google, gap": (google, spec(classifier="gap")),
    "google, pre_logits": (google, spec(pre_logits=True)),
    "google, no head": (google, spec(num_classes=None)),
    "google, R26": (google, spec(patch_size=1, stem_units=(2, 2, 2, 2), grid=(2, 2))),
    "google, R": (google, spec(patch_size=8, stem_units=(), grid=(1, 1))),
    "big_vision": (big_vision, spec(("params/", flax.BY_CLASS))),
    "big_vision, gap, sincos": (
        big_vision,
        spec(("opt/target/", flax.BY_CLASS), (14, 14), classifier="gap", positions="sincos_2d"),
    ),
    "big_vision, map": (big_vision, spec(("", flax.BY_CLASS), classifier="map")),
    "bit": (bit, PretrainedSpec(ResNetConfig((3, 4, 6, 3), num_classes=5))),
    "hugging face": (
        hugging_face,
        torch_spec(VIT, epsilon=1e-12, position_resize="bicubic"),
    ),
    "hugging face, DINOv2": (
        hugging_face,
        torch_spec(DINO, layer_scale=1.0, num_classes=None, num_registers=4,
                   mean_std=IMAGENET_MEAN_STD),
    ),
    "hugging face, DINOv2 classifier": (
        hugging_face,
        torch_spec(("dinov2.", hugging_face.DINO), position_resize="bicubic", layer_scale=1.0,
                   classifier="token_gap", mean_std=IMAGENET_MEAN_STD),
    ),
    "timm": (timm, torch_spec(("norm", 1))),
    "timm, registers": (timm, torch_spec(("norm", 3), num_registers=2, layer_scale=1.0)),
    "timm, registers without positions": (timm, torch_spec(("norm", 0), num_registers=2)),
    "timm, gap": (timm, torch_spec(("fc_norm", 0), classifier="gap_norm")),
}  # fmt: skip


def random_arrays(format, spec, seed=0):
    """Returns random arrays with the names and shapes of a file."""
    rng = np.random.default_rng(seed)
    return {
        name: 0.3 * rng.normal(size=shape).astype("float32")
        for mapping in format.weight_map(spec)
        for name, shape in zip(mapping.names, mapping.expected_shapes, strict=True)
    }


def write(format, arrays, folder):
    """Writes a file of a format and returns its path."""
    if "npz" in format.NAME:
        np.savez(folder / "weights.npz", **arrays)
        return folder / "weights.npz"
    save_file(arrays, folder / "model.safetensors")
    return folder / "model.safetensors"


def pixels(model, count=2):
    """Returns random images of the model's size, float32 pixels `(b, h, w, 3)`."""
    rng = np.random.default_rng(3)
    return rng.integers(0, 256, (count, *model.input_shape[1:])).astype("float32")


def logits(model):
    """Returns the output of a model on `pixels`."""
    return keras.ops.convert_to_numpy(model(pixels(model)))


def randomized(**options):
    """Returns a small ViT none of whose weights is zero or one."""
    options = {"variant": "Ti/4", "image_size": 16, "num_classes": 3, **TINY, **options}
    model = vk.vit(**options)
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(weight + 0.2 * rng.normal(size=weight.shape))
    return model
