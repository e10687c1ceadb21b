"""What `experiments.benchmark serving` runs: JPEG files in, the five best classes out.

Each job is a function of a list of files, as bytes, that returns class numbers `(b, 5)`.
"""

import io
import os
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import vitkeras as vk
from experiments.input_jobs import photograph
from vitkeras import data, serving

TOP = 5
BATCHES = (1, 8, 32)


def time_exports(ours, peer, variant, side, rounds):
    """Times the jobs in turn, request by request.

    Args:
        ours: Our model.
        peer: keras_hub's model of the same sizes; None for none. With it goes transformers', where
            torch can be imported.
        variant: Name of our model.
        side: Of the models' images, in pixels.
        rounds: Rounds of at least 8 images.
    Returns:
        Dict from batch size and job to milliseconds, images/s and its ratio to ours.
    """
    content, result = photograph(), {}
    with tempfile.TemporaryDirectory() as folder:
        jobs = export_jobs(ours, side, Path(folder) / "vitkeras")
        if peer is not None:
            jobs["keras_hub"] = keras_job(peer, side, f"{folder}/peer")
            torch = torch_job(variant, side, ours.output_shape[-1])
            jobs |= {"transformers": torch} if torch else {}
        for batch in BATCHES:
            contents = [content] * batch
            seconds = {name: [] for name in jobs}
            for number in range(2 + rounds * max(1, 8 // batch)):
                first = number % len(jobs)  # each follows each: threads of torch's spin a while
                for name in [*jobs, *jobs][first : first + len(jobs)]:
                    start = time.perf_counter()
                    if jobs[name](contents).shape != (batch, TOP):
                        raise RuntimeError(f"{name} did not answer for each image")
                    if number >= 2:  # the first ones compile
                        seconds[name].append(time.perf_counter() - start)
            middle = {name: np.median(times) for name, times in seconds.items()}
            for name, times in seconds.items():
                found = {
                    "requests": len(times),
                    "p50_ms": round(float(middle[name]) * 1e3, 1),
                    "p99_ms": round(float(np.percentile(times, 99)) * 1e3, 1),
                    "images_s": round(float(batch / middle[name]), 2),
                    "ratio": round(float(middle[name] / middle["vitkeras"]), 3),
                }
                text = ", ".join(f"{key} {value}" for key, value in found.items())
                print(f"batch {batch:2d} {name:13s} {text}", file=sys.stderr, flush=True)
                result[f"{batch}_{name}"] = found
    return result


def export_jobs(model, side, folder):
    """Returns jobs of the export of our model: its plain and its compiled signature."""
    names = [str(i) for i in range(model.output_shape[-1])]
    path = serving.export(model, data.Preprocessing((side, side)), names, folder, top=TOP, xla=True)
    loaded = tf.saved_model.load(path)
    return {
        "vitkeras": _signature_job(loaded, "serving_default"),
        "vitkeras_xla": _signature_job(loaded, "xla"),
    }


def keras_job(model, side, folder):
    """Returns a job of an export of any Keras model, with the usual decoding in its graph."""

    def image(content):  # (side, side, 3), in [-1, 1]
        pixels = tf.io.decode_jpeg(content, channels=3)
        return tf.image.resize(pixels, (side, side)) / 127.5 - 1.0

    def serve(image_bytes):
        images = tf.map_fn(image, image_bytes, fn_output_signature=tf.float32)
        probabilities = tf.nn.softmax(model(images, training=False))
        scores, best = tf.math.top_k(probabilities, TOP)
        return {"label_ids": best, "scores": scores, "probabilities": probabilities}

    archive = keras.export.ExportArchive()
    archive.track(model)
    spec = tf.TensorSpec((None,), tf.string, name="image_bytes")
    archive.add_endpoint("serving_default", serve, input_signature=[spec])
    archive.write_out(folder, verbose=False)
    return _signature_job(tf.saved_model.load(folder), "serving_default")


def torch_job(variant, side, classes):
    """Returns a job of transformers' ViT in torch, on all cores; None where it is not installed."""
    try:
        import torch
        from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor
    except ImportError:
        return None
    from PIL import Image

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    sizes, patch_size, _ = vk.models.parse_variant(variant)
    processor = ViTImageProcessor(size={"height": side, "width": side})
    model = ViTForImageClassification(
        ViTConfig(
            hidden_size=sizes.hidden_dim, num_hidden_layers=sizes.num_layers,
            num_attention_heads=sizes.num_heads, intermediate_size=sizes.mlp_dim,
            image_size=side, patch_size=patch_size, num_labels=classes,
        )
    ).eval()  # fmt: skip

    def job(contents):
        images = [Image.open(io.BytesIO(content)).convert("RGB") for content in contents]
        with torch.inference_mode():
            logits = model(**processor(images, return_tensors="pt")).logits
            return logits.softmax(-1).topk(TOP).indices.numpy()

    return job


def _signature_job(loaded, name):
    signature = loaded.signatures[name]

    def job(contents):
        return signature(image_bytes=tf.constant(contents))["label_ids"].numpy()

    job.loaded = loaded  # its variables live as long as it does
    return job
