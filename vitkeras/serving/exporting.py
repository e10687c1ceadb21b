"""Writes a version aside, has a fresh process verify it, then renames it.

    BASE/<version>/     saved_model.pb, variables/, fingerprint.pb, model_card.md,
                        assets.extra/tf_serving_warmup_requests
    BASE/               models.config, batching_parameters.txt, monitoring.config

A server polls BASE for folders with a number for a name: one is there whole or not at all.
"""

import contextlib
import fcntl
import os
import shutil
from pathlib import Path

import keras

from vitkeras.errors import InputError
from vitkeras.serving.model_card import model_card
from vitkeras.serving.server_files import write_server_files
from vitkeras.serving.signatures import signatures
from vitkeras.serving.verifying import verify
from vitkeras.serving.warmup import WARMUP, sample_images, write_warmup
from vitkeras.storage import is_remote, to_disk

#: Classes that an answer names, where nothing else is asked for.
TOP = 5


def next_version(base):
    """Returns the next free integer version under `base`."""
    return max((int(p.name) for p in Path(base).glob("*") if p.name.isdecimal()), default=0) + 1


def export(
    model,
    preprocessing,
    class_names,
    base,
    version=None,
    top=TOP,
    compute_dtype=None,
    xla=False,
    about=None,
    say=None,
):
    """Writes a SavedModel whose signatures `model_card.py` lists, verified against the live model.

    Args:
        model: Gives logits; made without a strategy.
        preprocessing: The run's `Preprocessing`; it becomes part of the graph.
        class_names: Names in the order of the logits.
        base: Folder of the versions; its name is the model's.
        version: A positive integer; None for the next free one.
        top: How many classes an answer names, as far as there are so many.
        compute_dtype: "float32" or "mixed_bfloat16"; None for what the model was made with.
        xla: Whether to add a signature that XLA compiles. Stock servers do not run it: on a CPU
            they need --xla_cpu_compilation_enabled, and their GPU images cannot.
        about: Rows of the model card, from title to text.
        say: Takes a line on what was verified; None for none.
    Returns:
        The folder that was written.
    Raises:
        InputError: If the version exists or is not positive, another argument is out of range, or
            `base` cannot be a folder.
        RunError: If the export does not answer as the model does; then no version is written.
    """
    if is_remote(base):
        raise InputError(
            "An export needs a folder on this machine: an object store cannot rename one. "
            f"Received: {base}. Copy the version afterwards, its saved_model.pb last."
        )
    base = Path(base)
    name = Path(os.path.abspath(base)).name
    _check_version(base, version)
    if top < 1:
        raise InputError(f"`top` must be at least 1. Received: top={top}.")
    model = with_compute_dtype(model, compute_dtype) if compute_dtype else model
    types = {layer.compute_dtype for layer in model.layers}  # the head's is float32 always
    compute = next(iter(types - {"float32"}), "float32")
    top = min(top, len(class_names))
    try:
        base.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            "An export needs a place where a folder of versions can be made. "
            f"Received: {base} ({error.strerror})."
        ) from error
    images = sample_images(preprocessing.image_size)
    with _aside(base) as aside:
        archive = keras.export.ExportArchive()
        archive.track(model)
        served = signatures(model, preprocessing, class_names, top, xla)
        for signature, (function, spec) in served.items():
            archive.add_endpoint(signature, function, input_signature=[spec])
        archive.write_out(aside, verbose=False)
        (aside / WARMUP).parent.mkdir()
        write_warmup(aside / WARMUP, name, preprocessing.image_size, images)
        differences = verify(aside, model, preprocessing, images, compute)
        if say:
            found = ", ".join(f"{key} {value:.1e}" for key, value in differences.items())
            say(f"a fresh process answers as the live model does; largest difference: {found}")
        card = model_card(
            model, preprocessing, class_names, top, compute, differences, xla, about or {}
        )
        (aside / "model_card.md").write_text(card, encoding="utf-8")
        folder = _publish(aside, base, version)
    write_server_files(base, name)
    return folder


def with_compute_dtype(model, dtype):
    """Returns the model with the same weights and another compute type in all layers but the head.

    Raises:
        InputError: If the type is none of those that are exported.
    """
    if dtype not in ("float32", "mixed_bfloat16"):
        raise InputError(
            f"`compute_dtype` must be float32 or mixed_bfloat16. Received: compute_dtype={dtype!r}."
        )
    config, policy = model.get_config(), keras.dtype_policies.get(dtype)
    for layer in config["layers"]:
        is_policy = isinstance(layer["config"].get("dtype"), dict)  # an input has a mere type
        if is_policy and layer["config"]["name"] != "head":
            layer["config"]["dtype"] = keras.dtype_policies.serialize(policy)
    other = type(model).from_config(config)
    other.set_weights(model.get_weights())
    return other


def _check_version(base, version):
    if version is not None and (version < 1 or (base / str(version)).exists()):
        raise InputError(
            "`version` must be a positive integer that does not exist yet. "
            f"Received: version={version}, {base / str(version)}. Next free: {next_version(base)}."
        )


@contextlib.contextmanager
def _aside(base):
    """Gives a folder in `base` to write in, held until it is renamed; nothing stays of it else."""
    for path in base.glob(".version-*"):  # of processes that were killed: nobody holds them
        with _held(path) as free:
            if free:
                shutil.rmtree(path)
    folder = base / f".version-{os.getpid()}"
    folder.mkdir()
    with _held(folder):
        try:
            yield folder
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


@contextlib.contextmanager
def _held(folder):
    """Holds a folder, if nobody else does, and says whether; it ends with the process."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(descriptor)


def _publish(aside, base, version):
    """Puts all on the disk, then renames to the version."""
    for place, _, files in os.walk(aside):
        for path in (*(os.path.join(place, file) for file in files), place):
            to_disk(path)
    while True:
        folder = base / str(next_version(base) if version is None else version)
        try:
            os.rename(aside, folder)
        except OSError:
            if not folder.exists():
                raise
            _check_version(base, version)  # another export was faster
        else:
            to_disk(base)
            return folder
