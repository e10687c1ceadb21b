"""Vision Transformers for TensorFlow and Keras 3. Importing this loads no TensorFlow of its own."""

from vitkeras.dropping import StochasticDepth
from vitkeras.finetuning import freeze
from vitkeras.heads import MapHead
from vitkeras.layers import LayerScale, SelfAttention, TransformerBlock
from vitkeras.models import HYBRIDS, VARIANTS, vit
from vitkeras.resnet import RESNETS, resnet
from vitkeras.stem import HybridStem
from vitkeras.tokens import PatchEncoder, Patches, PositionEmbedding
from vitkeras.transfer import transfer_weights
from vitkeras.weights import from_pretrained, load_weights, save_weights

__all__ = [
    "HYBRIDS",
    "RESNETS",
    "VARIANTS",
    "HybridStem",
    "LayerScale",
    "MapHead",
    "PatchEncoder",
    "Patches",
    "PositionEmbedding",
    "SelfAttention",
    "StochasticDepth",
    "TransformerBlock",
    "freeze",
    "from_pretrained",
    "load_weights",
    "resnet",
    "save_weights",
    "transfer_weights",
    "vit",
]
