"""Times vitkeras in turn with a peer, in one run: machines drift, ratios hold.

    python -m experiments.benchmark model
    python -m experiments.benchmark state
    python -m experiments.benchmark input
    python -m experiments.benchmark serving

`model`: a forward pass and an AdamW step of a ViT-S/16 at 224 with 1000 classes, batch 8, with and
without XLA, against keras_hub's ViT of the same size. Each pair runs in turn, round by round; the
medians and their ratio are printed.

`state`: the same training steps with and without saving the state of the run every 20 of them.

`input`: images/s out of the input pipeline alone: crops, crops with RandAugment (2, 15), the same
with Keras's layer, and with PIL and NumPy in two processes.

`serving`: exports from JPEG files to the five best classes, batch 1, 8 and 32, with and without
XLA, against an export of keras_hub's model and, where they can be imported, transformers and torch.
"""

import functools
import itertools
import statistics
import sys
import tempfile
import time
from pathlib import Path

from experiments import cli  # first: it sets TensorFlow's log level

# isort: split
import keras
import numpy as np
import tensorflow as tf
from absl import flags

import vitkeras as vk
from vitkeras.errors import InputError
from vitkeras.training import checkpoints

ROUNDS = flags.DEFINE_integer("rounds", 6, "Timed rounds, after one that compiles.", lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Images at once.", lower_bound=1)
VARIANT = flags.DEFINE_string("variant", "S/16", "Of vitkeras and of the peer.")
IMAGE_SIZE = flags.DEFINE_integer("image_size", 224, "Side in pixels.")
PEER = flags.DEFINE_bool("peer", True, "Whether keras_hub runs too (extra: benchmark).")
SAVE_STEPS = flags.DEFINE_integer("save_steps", 20, "Steps between two saves.", lower_bound=1)
CLASSES = 1000


def peer_model():
    """Returns keras_hub's ViT classifier of the same sizes."""
    try:
        import keras_hub
    except ImportError as error:
        raise InputError(
            "The peer is keras_hub: pip install -e '.[benchmark]', or give --nopeer."
        ) from error
    sizes, patch_size, _ = vk.models.parse_variant(VARIANT.value)
    backbone = keras_hub.models.ViTBackbone(
        image_shape=(IMAGE_SIZE.value, IMAGE_SIZE.value, 3),
        patch_size=patch_size,
        **sizes._asdict(),
    )
    return keras_hub.models.ViTImageClassifier(
        backbone=backbone, num_classes=CLASSES, preprocessor=None
    )


def our_model():
    """Returns the vitkeras model."""
    return vk.vit(VARIANT.value, image_size=IMAGE_SIZE.value, num_classes=CLASSES)


def work(model, job, xla, images, labels):
    """Returns a function that does one forward pass or one training step and waits for it."""
    if job == "infer":
        forward = tf.function(lambda x: model(x, training=False), jit_compile=xla)
        return lambda: forward(images).numpy()
    model.compile(
        keras.optimizers.AdamW(1e-4),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=xla,
    )
    return lambda: model.train_on_batch(images, labels)


def time_in_turn(jobs):
    """Returns the median seconds of each job, taken round by round."""
    times = {name: [] for name in jobs}
    for round_ in range(ROUNDS.value + 1):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            if round_:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def time_models(images, labels):
    """Times models with and without XLA."""
    batch = len(images)
    makers = {"vitkeras": our_model} | ({"keras_hub": peer_model} if PEER.value else {})
    result = {}
    for job in ("infer", "train"):
        for xla in (False, True):
            jobs = {name: work(make(), job, xla, images, labels) for name, make in makers.items()}
            rates = {name: batch / seconds for name, seconds in time_in_turn(jobs).items()}
            line = ", ".join(f"{name} {rate:.2f} images/s" for name, rate in rates.items())
            if PEER.value:
                rates["ratio"] = rates["vitkeras"] / rates["keras_hub"]
                line += f", ratio {rates['ratio']:.2f}"
            label = f"{job}{'_xla' if xla else ''}"
            print(f"{label:10s} {line}", file=sys.stderr, flush=True)
            result[label] = {name: round(rate, 3) for name, rate in rates.items()}
            keras.backend.clear_session()
    return result


def time_saves(images, labels):
    """Times training with and without saving, in turn."""
    model = our_model()
    step = work(model, "train", False, images, labels)

    numbers = itertools.count()

    def train(writer=None):
        if writer is not None:
            writer.save(next(numbers), checkpoints.arrays_of(model), {})
        for _ in range(SAVE_STEPS.value):
            step()

    with tempfile.TemporaryDirectory() as folder:
        writer = checkpoints.StateWriter(folder)
        seconds = time_in_turn({"without": train, "with": lambda: train(writer)})
        writer.wait()
        size = sum(path.stat().st_size for path in Path(folder).glob("step-*/*")) // 2
    cost = seconds["with"] / seconds["without"] - 1
    print(
        f"saving {size / 1e6:.0f} MB every {SAVE_STEPS.value} steps costs {cost:.1%}",
        file=sys.stderr,
    )
    return {"save_steps": SAVE_STEPS.value, "bytes": size, "cost": round(cost, 4)}


def time_input(images, labels):
    """Times the input pipeline and its peers, in turn; each job makes fewer the slower it is."""
    from experiments import input_jobs

    side, image_bytes = IMAGE_SIZE.value, input_jobs.photograph()
    pil = input_jobs.PilJob(image_bytes, side)
    jobs = {
        "crop": (1200, input_jobs.tensorflow_job(image_bytes, side)),
        "randaug": (1200, input_jobs.tensorflow_job(image_bytes, side, "ours")),
        "keras_randaug": (20, input_jobs.tensorflow_job(image_bytes, side, "keras")),
        "pil_randaug": (1200, pil),
    }
    try:
        seconds = time_in_turn({k: functools.partial(job, n) for k, (n, job) in jobs.items()})
    finally:
        pil.close()
    rates = {name: jobs[name][0] / time for name, time in seconds.items()}
    for name, rate in rates.items():
        ratio = rates["randaug"] / rate
        print(f"{name:14s} {rate:7.1f} images/s, randaug / it {ratio:.2f}", file=sys.stderr)
    return {name: round(rate, 1) for name, rate in rates.items()}


def time_serving(images, labels):
    """Times exports, in turn."""
    from experiments import serving_jobs

    peer = peer_model() if PEER.value else None
    return serving_jobs.time_exports(
        our_model(), peer, VARIANT.value, IMAGE_SIZE.value, ROUNDS.value
    )


JOBS = {"model": time_models, "state": time_saves, "input": time_input, "serving": time_serving}


def main(arguments):
    """Measures."""
    if len(arguments) != 1 or arguments[0] not in JOBS:
        raise InputError(
            f"Say what to measure: {', '.join(JOBS)}. Received: {' '.join(arguments) or 'nothing'}."
        )
    batch, side = BATCH_SIZE.value, IMAGE_SIZE.value
    images = tf.constant(np.random.rand(batch, side, side, 3).astype("float32"))
    labels = tf.constant(np.random.randint(0, CLASSES, batch))
    result = {"variant": VARIANT.value, "image_size": side, "batch_size": batch}
    return result | JOBS[arguments[0]](images, labels)


if __name__ == "__main__":
    cli.run(main, takes_arguments=True)
