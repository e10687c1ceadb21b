"""Vision Transformers for TensorFlow and Keras 3.

Importing this package imports neither Keras nor a backend; the public names are loaded on first
use. When Keras is imported, before or afterwards, the classes in saved models are registered, so
that `keras.saving.load_model` finds them.
"""

import importlib
from typing import TYPE_CHECKING

import wrapt

__version__ = "0.2.0"

if TYPE_CHECKING:
    from vitkeras.layers.embeddings import PatchEncoder, Patches, PositionEmbedding
    from vitkeras.layers.hybrid_stem import HybridStem
    from vitkeras.layers.pooling import MapHead
    from vitkeras.layers.regularization import StochasticDepth
    from vitkeras.layers.transformer import LayerScale, SelfAttention, TransformerBlock
    from vitkeras.models.config import HYBRIDS, RESNETS, VARIANTS, ResNetConfig, ViTConfig
    from vitkeras.models.features import features
    from vitkeras.models.resnet import resnet
    from vitkeras.models.vit import Model, VisionModel, vit
    from vitkeras.pretrained.loading import from_pretrained, load_weights
    from vitkeras.pretrained.saving import save_weights
    from vitkeras.pretrained.transfer import transfer_weights
    from vitkeras.training.freezing import freeze

_MODULES = {
    "HYBRIDS": "models.config",
    "RESNETS": "models.config",
    "VARIANTS": "models.config",
    "HybridStem": "layers.hybrid_stem",
    "LayerScale": "layers.transformer",
    "MapHead": "layers.pooling",
    "Model": "models.vit",
    "PatchEncoder": "layers.embeddings",
    "Patches": "layers.embeddings",
    "PositionEmbedding": "layers.embeddings",
    "ResNetConfig": "models.config",
    "SelfAttention": "layers.transformer",
    "StochasticDepth": "layers.regularization",
    "TransformerBlock": "layers.transformer",
    "ViTConfig": "models.config",
    "VisionModel": "models.vit",
    "features": "models.features",
    "freeze": "training.freezing",
    "from_pretrained": "pretrained.loading",
    "load_weights": "pretrained.loading",
    "resnet": "models.resnet",
    "save_weights": "pretrained.saving",
    "transfer_weights": "pretrained.transfer",
    "vit": "models.vit",
}

__all__ = [
    "HYBRIDS",
    "RESNETS",
    "VARIANTS",
    "HybridStem",
    "LayerScale",
    "MapHead",
    "Model",
    "PatchEncoder",
    "Patches",
    "PositionEmbedding",
    "ResNetConfig",
    "SelfAttention",
    "StochasticDepth",
    "TransformerBlock",
    "ViTConfig",
    "VisionModel",
    "__version__",
    "features",
    "freeze",
    "from_pretrained",
    "load_weights",
    "resnet",
    "save_weights",
    "transfer_weights",
    "vit",
]


def __getattr__(name):
    if name in _MODULES:
        return getattr(importlib.import_module(f"vitkeras.{_MODULES[name]}"), name)
    try:
        return importlib.import_module(f"vitkeras.{name}")  # a subpackage, such as `vitkeras.data`
    except ModuleNotFoundError as error:
        if error.name != f"vitkeras.{name}":
            raise
        raise AttributeError(f"module 'vitkeras' has no attribute {name!r}") from None


def __dir__():
    return sorted(
        [*__all__, "data", "evaluation", "interpret", "pretrained", "serving", "training"]
    )


def _register_classes(keras):
    for name in ("models.vit", "models.resnet", "training.losses", "training.optimizers"):
        importlib.import_module(f"vitkeras.{name}")


wrapt.register_post_import_hook(_register_classes, "keras")
