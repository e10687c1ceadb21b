"""Loads .keras files of this package; nothing in them is trusted before it is checked.

`keras.saving.load_model` builds whatever the JSON of a file describes, and allocates what it
declares. Here the description must be that of a `VisionModel` of this package, and the arrays must
be those of its architecture and be contained in the file.
"""

import json
import zipfile
from pathlib import Path
from typing import Any

import h5py
import keras

from vitkeras.errors import InputError
from vitkeras.keras_internals import without_allocation
from vitkeras.models.builder import build_model
from vitkeras.models.config import ResNetConfig, ViTConfig, config_from_dict
from vitkeras.models.vit import VisionModel

CONFIG, WEIGHTS = "config.json", "model.weights.h5"
MEMBERS = {"metadata.json", CONFIG, WEIGHTS}
#: Bytes of JSON; ViT-G/14 has 100 kB.
MAX_JSON = 2**22
#: Further bytes that reading may need, besides those of the file: for buffers and fixed tables.
SLACK = 2**26
#: Keys of a layer's config that do not change what the layer computes or allocates.
FREE_KEYS = {"name", "trainable", "shared_object_id"}


def load_keras_file(path: Path) -> VisionModel:
    """Returns the model in a .keras file, without an optimizer.

    Args:
        path: A local file.
    Raises:
        InputError: If the file is damaged, holds another model than one of `vit`, `resnet` or
            `from_pretrained`, or declares other arrays than those of its architecture.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            saved = _read_json(archive, path)
            config = _architecture(saved, path)
            _check_weights(archive, path, config, saved)
        model = keras.saving.load_model(path, compile=False)
    except InputError:
        raise
    except Exception as error:  # whatever zipfile, h5py or Keras raise for a damaged file
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
        raise _refused(path, f"which cannot be read ({reason})") from error
    return model


def read_keras_config(path: Path) -> ViTConfig | ResNetConfig:
    """Returns the architecture of the model in a .keras file.

    Args:
        path: A local file.
    Raises:
        InputError: As `load_keras_file`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _architecture(_read_json(archive, path), path)
    except InputError:
        raise
    except Exception as error:  # whatever zipfile raises for a damaged file
        raise _refused(path, f"which cannot be read ({error})") from error


def _refused(path, reason):
    return InputError(
        "A .keras file must hold a model of `vit`, `resnet` or `from_pretrained`, as `model.save` "
        f"writes it. Received: {path}, {reason}."
    )


def _read_json(archive, path) -> dict[str, Any]:
    """Returns the JSON that describes the model, after checking the members of the archive."""
    members = {info.filename: info for info in archive.infolist()}
    if set(members) != MEMBERS or len(archive.infolist()) != len(MEMBERS):
        names = ", ".join(sorted(set(members) ^ MEMBERS)[:5]) or "a name twice"
        raise _refused(path, f"with missing or further members: {names}")
    for name, info in members.items():
        limit = MAX_JSON if name != WEIGHTS else path.stat().st_size + SLACK
        if info.file_size > limit:
            raise _refused(path, f"in which {name} declares {info.file_size:,} bytes")
    saved = json.loads(archive.read(CONFIG))
    kind = saved.get("registered_name") or saved.get("class_name")
    if kind != "vitkeras>VisionModel":
        raise _refused(
            path,
            f"a {str(kind)[:80]}. If you trust it, load it with keras.saving.load_model",
        )
    return saved["config"]


def _architecture(saved, path):
    """Returns the config in the description of a model."""
    if "architecture" not in saved:
        # This raises the sentence for models of version 0.1.
        VisionModel.from_config(saved)
    if saved["architecture"] is None:
        raise _refused(
            path,
            "a model that was made from layers of another. Load it with keras.saving.load_model",
        )
    return config_from_dict(saved["architecture"])


def _check_weights(archive, path, config, saved):
    """Checks description and arrays against the architecture, without allocating them."""
    with archive.open(WEIGHTS) as member, h5py.File(member) as file:
        arrays = _float_shapes(file["layers"], path)
    size = sum(map(_bytes, arrays))
    if isinstance(config, ViTConfig):  # fixed position embeddings are not in the file
        positions = _bytes((*config.grid, config.hidden_dim))
        if positions > 64 * size + SLACK or config.num_layers > len(arrays):
            raise _refused(path, "whose arrays are not those of its architecture")
    with without_allocation():
        expected = build_model(config, _policy(saved))
        own = json.loads(json.dumps(keras.saving.serialize_keras_object(expected)["config"]))
        shapes = sorted(tuple(v.shape) for v in expected.weights if "float" in v.dtype)
    if arrays != shapes:
        quantized = "Quantiz" in json.dumps(saved["layers"])
        raise _refused(
            path,
            f"whose {len(arrays)} arrays are not the {len(shapes)} of its architecture"
            + (". Keras cannot reload quantized layers: save before `quantize`" * quantized),
        )
    difference = _first_difference(saved["layers"], own["layers"], _indices(saved), _indices(own))
    if difference is None:
        outputs = [_indices(each)[each["output_layers"][0]] for each in (saved, own)]
        difference = None if outputs[0] == outputs[1] else "output_layers"
    if difference:
        raise _refused(
            path,
            f"whose description of layers is not that of its architecture ({difference}). If you "
            "trust it, load it with keras.saving.load_model",
        )


def _bytes(shape):
    size = 4
    for side in shape:
        size *= side
    return size


def _float_shapes(group, path):
    """Returns the sorted shapes of the float arrays in a group of an HDF5 file.

    Raises:
        InputError: If an array is not contained in the file, uncompressed.
    """
    found, pending = [], [group]
    while pending:
        current = pending.pop()
        for name in current:
            if not isinstance(current.get(name, getlink=True), h5py.HardLink):
                raise _refused(path, f"in which {name} links to another place")
            value = current[name]
            if isinstance(value, h5py.Group):
                pending.append(value)
                continue
            if value.external or value.is_virtual or value.id.get_storage_size() != value.nbytes:
                raise _refused(path, f"in which {value.name} declares more than the file holds")
            if value.dtype.kind == "f" or value.dtype.kind == "V":  # Keras stores bfloat16 as void
                found.append(value.shape)
    return sorted(found)


def _policy(saved):
    """Returns the name of the dtype policy of the layers between rescaling and head."""
    names = {
        layer["config"]["dtype"]["config"]["name"]
        for layer in saved["layers"]
        if layer["name"] in ("patches", "root")
    }
    return names.pop() if len(names) == 1 else None


def _indices(config):
    """Returns the index of each layer by its name; those of operations are made by Keras."""
    return {layer["name"]: str(index) for index, layer in enumerate(config["layers"])}


def _first_difference(saved, own, saved_names, own_names, key="layers"):
    """Returns the key of the first difference of two descriptions; None if they agree.

    Keys that only `own` has are those of a newer version.
    """
    if isinstance(saved, dict) and isinstance(own, dict):
        for name in saved:
            if name in FREE_KEYS and isinstance(saved[name], (str, bool, int)):
                continue
            if name not in own:
                return f"{key}.{name}"
            found = _first_difference(
                saved[name], own[name], saved_names, own_names, f"{key}.{name}"
            )
            if found:
                return found
        return None
    if isinstance(saved, list) and isinstance(own, list):
        if len(saved) != len(own):
            return key
        for index, pair in enumerate(zip(saved, own, strict=True)):
            found = _first_difference(*pair, saved_names, own_names, f"{key}[{index}]")
            if found:
                return found
        return None
    if isinstance(saved, str) and isinstance(own, str):
        saved, own = saved_names.get(saved, saved), own_names.get(own, own)
    return None if type(saved) is type(own) and saved == own else key
