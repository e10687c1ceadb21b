"""Exports that the benchmark `serving` compares.

Each is a function from JPEG files, as bytes, to the indices of the five best classes `(b, 5)`.
"""

import io
import os
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from experiments.benchmarks import model_functions
from experiments.benchmarks.timing import NUM_CLASSES
from vitkeras import data, serving
from vitkeras.models.config import ViTConfig

TOP = 5
Export = Callable[[list[bytes]], np.ndarray]


def export_vitkeras(variant: str, image_size: int, folder: Path) -> dict[str, Export]:
    """Exports our model; returns its plain signature and the one that XLA compiles."""
    model = model_functions.vitkeras_model(variant, image_size)
    preprocessing = data.Preprocessing((image_size, image_size))
    names = [str(i) for i in range(NUM_CLASSES)]
    path = serving.export_saved_model(model, preprocessing, names, folder, top=TOP, xla=True)
    loaded = tf.saved_model.load(path)
    return {
        "vitkeras": _signature(loaded, "serving_default"),
        "vitkeras_xla": _signature(loaded, "xla"),
    }


def export_baselines(variant: str, image_size: int, folder: Path) -> dict[str, Export]:
    """Returns keras_hub's model as an export and, if installed, transformers' model."""
    exported = {"keras_hub": _export_keras_hub(variant, image_size, str(folder))}
    transformers = _transformers_model(variant, image_size)
    return exported | ({"transformers": transformers} if transformers else {})


def _export_keras_hub(variant, image_size, folder):
    model = model_functions.keras_hub_model(variant, image_size)

    def load(image_bytes):  # (h, w, 3), in [-1, 1]
        pixels = tf.io.decode_jpeg(image_bytes, channels=3)
        return tf.image.resize(pixels, (image_size, image_size)) / 127.5 - 1.0

    def serve(image_bytes):
        images = tf.map_fn(load, image_bytes, fn_output_signature=tf.float32)
        probabilities = tf.nn.softmax(model(images, training=False))
        scores, best = tf.math.top_k(probabilities, TOP)
        return {"label_ids": best, "scores": scores, "probabilities": probabilities}

    archive = keras.export.ExportArchive()
    archive.track(model)
    spec = tf.TensorSpec((None,), tf.string, name="image_bytes")
    archive.add_endpoint("serving_default", serve, input_signature=[spec])
    archive.write_out(folder, verbose=False)
    return _signature(tf.saved_model.load(folder), "serving_default")


def _transformers_model(variant, image_size):
    """Returns transformers' ViT in torch on all cores; None if they are not installed."""
    try:
        import torch
        import transformers
    except ImportError:
        return None
    from PIL import Image

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    config = ViTConfig.from_variant(variant, image_size=image_size)
    processor = transformers.ViTImageProcessor(size={"height": image_size, "width": image_size})
    model = transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=config.hidden_dim, num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads, intermediate_size=config.mlp_dim,
            image_size=image_size, patch_size=config.patch_size, num_labels=NUM_CLASSES,
        )
    ).eval()  # fmt: skip

    def predict(contents):
        images = [Image.open(io.BytesIO(content)).convert("RGB") for content in contents]
        with torch.inference_mode():
            logits = model(**processor(images, return_tensors="pt")).logits
            return logits.softmax(-1).topk(TOP).indices.numpy()

    return predict


def _signature(loaded, name):
    signature = loaded.signatures[name]

    def predict(contents):
        return signature(image_bytes=tf.constant(contents))["label_ids"].numpy()

    predict.loaded = loaded  # keeps the variables alive
    return predict
