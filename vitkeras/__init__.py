"""Vision Transformers for TensorFlow and Keras 3. Importing this loads no TensorFlow of its own."""

from vitkeras.layers import (
    LayerScale,
    PatchEncoder,
    Patches,
    SelfAttention,
    StochasticDepth,
    TransformerBlock,
)
from vitkeras.models import VARIANTS, vit
from vitkeras.transfer import transfer_weights

__all__ = [
    "VARIANTS",
    "LayerScale",
    "PatchEncoder",
    "Patches",
    "SelfAttention",
    "StochasticDepth",
    "TransformerBlock",
    "transfer_weights",
    "vit",
]
