"""Writes a version of a SavedModel atomically, after a fresh process verified it.

    BASE/VERSION/     saved_model.pb, variables/, fingerprint.pb, model_card.md,
                      assets.extra/tf_serving_warmup_requests
    BASE/             models.config, batching_parameters.txt, monitoring.config, .lock

A server polls BASE for folders whose names are integers; it never sees an incomplete one.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import keras
from absl import logging

from vitkeras.arguments import check_choice, check_int, check_range
from vitkeras.data.preprocessing import Preprocessing
from vitkeras.errors import InputError
from vitkeras.io.atomic import is_remote, publish, remove_stale_staging, staging_directory
from vitkeras.io.locks import exclusive_lock
from vitkeras.models.builder import build_model
from vitkeras.models.config import model_config
from vitkeras.models.features import features
from vitkeras.models.vit import VisionModel
from vitkeras.serving.model_card import format_model_card
from vitkeras.serving.server_files import write_server_files
from vitkeras.serving.signatures import make_signatures
from vitkeras.serving.verification import verify_export
from vitkeras.serving.warmup import WARMUP_FILE, sample_images, write_warmup

PATTERN_CHARACTERS = "*?[\\"
COMPUTE_DTYPES = ("float32", "mixed_bfloat16")


def next_version(base: str | os.PathLike) -> int:
    """Returns the next free version in a folder of versions."""
    return max((int(p.name) for p in Path(base).glob("*") if p.name.isdecimal()), default=0) + 1


def export_saved_model(
    model: VisionModel,
    preprocessing: Preprocessing,
    class_names: Sequence[str],
    base: str | os.PathLike,
    version: int | None = None,
    top: int = 5,
    compute_dtype: str | None = None,
    xla: bool = False,
    feature_layers: Sequence[int] = (),
    rows: Mapping[str, str] | None = None,
    activation: str = "softmax",
) -> Path:
    """Writes a SavedModel with the signatures of `make_signatures`, verified against the model.

    One process exports to a folder at a time; others wait.

    Args:
        model: A model with a head that takes pixels (`include_rescaling=True`), built outside of a
            distribution strategy.
        preprocessing: Preprocessing of the run; it becomes part of the graph.
        class_names: Class names in the order of the logits.
        base: Local folder of the versions. Its name is the name of the model on the server.
        version: A positive integer that does not exist yet; None for the next free one.
        top: Number of classes in an answer, at most the number of classes of the model.
        compute_dtype: "float32" or "mixed_bfloat16"; None for that of the model.
        xla: Whether to add a signature that XLA compiles. Stock servers do not run it: on a CPU
            they need --xla_cpu_compilation_enabled, and the GPU images cannot.
        feature_layers: Blocks, as in `vitkeras.features`, whose maps a signature `feature_maps`
            returns; none for no such signature.
        rows: Additional rows of the model card, from title to text.
        activation: From logits to probabilities: "softmax", or "sigmoid", whose probabilities of
            the classes do not sum to 1.
    Returns:
        The folder of the new version.
    Raises:
        InputError: If an argument is invalid, the version exists, or `base` cannot be created.
        RunError: If the outputs of the export differ from those of the model. Nothing is kept.
    """
    if is_remote(base):
        raise InputError(
            "`base` must be a local folder: an object store cannot rename a folder. "
            f"Received: base={base}. Copy the version afterwards, saved_model.pb last."
        )
    if any(character in os.path.abspath(base) for character in PATTERN_CHARACTERS):
        raise InputError(
            "The path of `base` must have none of the characters * ? [ \\, which TensorFlow takes "
            f"for a pattern: it would not find the weights. Received: {os.path.abspath(base)}."
        )
    _check_model(model, preprocessing, class_names)
    check_choice("activation", activation, ("softmax", "sigmoid"))
    if version is not None:
        check_int("version", version)
    top = min(check_int("top", top), len(class_names))
    if feature_layers:
        features(model, feature_layers)  # refuses what it cannot do, before anything is written
    if compute_dtype is not None:
        model = with_compute_dtype(model, compute_dtype)
    # Rescaling and head are float32 in every model.
    dtypes = {layer.compute_dtype for layer in model.layers} - {"float32"}
    dtype = next(iter(dtypes), "float32")
    base = Path(base)
    model_name = Path(os.path.abspath(base)).name
    try:
        base.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            "`base` must be a folder that can be created. "
            f"Received: base={base} ({error.strerror})."
        ) from error
    images = sample_images(preprocessing.image_size)
    with exclusive_lock(base, timeout=-1):
        remove_stale_staging(base)
        path = base / str(next_version(base) if version is None else version)
        _check_new(path)
        with staging_directory(path) as folder:
            folder.mkdir()
            archive = keras.export.ExportArchive()
            archive.track(model)
            signatures = make_signatures(
                model, preprocessing, class_names, top, xla, feature_layers, activation
            )
            for name, (function, spec) in signatures.items():
                archive.add_endpoint(name, function, input_signature=[spec])
            archive.write_out(folder, verbose=False)
            (folder / WARMUP_FILE).parent.mkdir()
            write_warmup(folder / WARMUP_FILE, model_name, preprocessing.image_size, images)
            differences = verify_export(
                folder, model, preprocessing, images, dtype, feature_layers, activation
            )
            logging.info(
                "Verified in a fresh process. Largest differences from the model: %s.",
                ", ".join(f"{name} {value:.1e}" for name, value in differences.items()),
            )
            card = format_model_card(
                model, preprocessing, class_names, top, dtype, differences, xla, feature_layers,
                rows or {}, activation,
            )  # fmt: skip
            (folder / "model_card.md").write_text(card, encoding="utf-8")
            _check_new(path)  # the lock does not stop other programs
            publish(folder, path)
        write_server_files(base, model_name)
    return path


def with_compute_dtype(model: VisionModel, compute_dtype: str) -> VisionModel:
    """Returns a copy of a model with the same weights and another compute dtype.

    Raises:
        InputError: If `compute_dtype` is not one of `COMPUTE_DTYPES`.
    """
    check_choice("compute_dtype", compute_dtype, COMPUTE_DTYPES)
    copy = build_model(model_config(model), compute_dtype, model.name)
    copy.set_weights(model.get_weights())
    return copy


def _check_model(model, preprocessing, class_names):
    config = model_config(model)
    required = {
        "include_rescaling": True,
        "channels": 3,
        "image_size": tuple(preprocessing.image_size),
        "num_classes": len(class_names),
    }
    for name, value in required.items():
        actual = getattr(config, name)
        check_range(name, actual, actual == value, f"{value} in the model of this export")


def _check_new(path):
    if path.exists():
        raise InputError(
            "`version` must not exist yet. "
            f"Received: version={path.name}, {path}. Next free: {next_version(path.parent)}."
        )
