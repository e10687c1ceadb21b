"""What lies at a path: an array file of a known format, or a model that this package saved."""

import contextlib
import json
import zipfile

import keras
from etils import epath

from vitkeras.errors import InputError
from vitkeras.runs import RunDirectory
from vitkeras.storage import local_file
from vitkeras.weights import big_vision, bit, google, hugging_face, timm
from vitkeras.weights.arrays import open_npz, open_safetensors

FORMATS = (google, big_vision, bit, hugging_face, timm)
KNOWN = (
    "a .npz of Google's vision_transformer, big_vision or BiT, a .safetensors of Hugging Face ViT "
    "or DINOv2 or of timm (or the folder with it and its config.json), a run directory, or a "
    ".keras file"
)
#: Files of a Hugging Face or timm folder that say how the weights are to be used.
SIDECARS = ("config.json", "processor_config.json", "preprocessor_config.json")


@contextlib.contextmanager
def open_weights(path):
    """Finds out by content what lies at a path.

    Args:
        path: A file or folder, on a disk or in an object store (gs://...).
    Returns:
        A context that gives `("model", model)` for what this package saved; else
        `(format, arrays, config)`: one of `FORMATS`, the open `Arrays`, and what the files beside
        them say.
    Raises:
        InputError: If nothing is there, or nothing that is known.
    """
    path = epath.Path(path)
    if not path.exists():
        raise InputError(f"`path` must be {KNOWN}. Received: {path}, where nothing is.")
    if path.is_dir():
        if (path / "class_names.json").exists():
            yield "model", RunDirectory(path).load_model(), {}
            return
        if not (path / "model.safetensors").exists():
            found = sorted(child.name for child in path.iterdir())
            if any(name.endswith(".safetensors.index.json") for name in found):
                raise InputError(
                    "Weights must be in one file: save them again with "
                    "`save_pretrained(..., max_shard_size='100GB')`. "
                    f"Received: the folder {path}, where they are in several."
                )
            if "pytorch_model.bin" in found:
                raise InputError(_pickle(path / "pytorch_model.bin"))
            raise InputError(
                f"`path` must be {KNOWN}. Received: the folder {path}, which has no "
                f"model.safetensors but {', '.join(found[:5]) or 'nothing'}."
            )
        path = path / "model.safetensors"
    with local_file(path) as place:
        kind = _kind(place, path)
        if kind == "keras":
            yield "model", keras.saving.load_model(place, compile=False), {}
            return
        opened = open_npz(place) if kind == "npz" else open_safetensors(place)
        with opened as arrays:
            arrays.path = path
            for format in FORMATS:
                if format.matches(arrays.shapes):
                    yield format, arrays, _sidecars(path.parent) if kind != "npz" else {}
                    return
            names = ", ".join(list(arrays.shapes)[:5]) or "none"
            raise InputError(
                f"`path` must be {KNOWN}. Received: {path}, whose arrays have names of no such "
                f"format: {names}, ..."
            )


def _kind(place, path):
    """Returns keras, npz or safetensors."""
    with open(place, "rb") as file:
        start = file.read(9)
    if start.startswith(b"PK\x03\x04"):
        try:
            with zipfile.ZipFile(place) as archive:
                names = archive.namelist()
        except (zipfile.BadZipFile, NotImplementedError, ValueError):
            return "npz"  # opening it as that says what is wrong
        if "model.weights.h5" in names and "config.json" in names:
            return "keras"
        if any(name.endswith("data.pkl") for name in names):
            raise InputError(_pickle(path))
        return "npz"
    if start.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        raise InputError(_pickle(path))
    if len(start) == 9 and start[8:] == b"{":
        return "safetensors"
    raise InputError(
        f"`path` must be {KNOWN}. Received: {path}, whose first bytes are of neither "
        f"({start[:8]!r})."
    )


def _pickle(path):
    return (
        "A weight file must hold plain arrays. "
        f"Received: {path}, a torch pickle, which could run any code when it is read. Convert it "
        "to safetensors where you trust it (safetensors.torch.save_file)."
    )


def _sidecars(folder):
    """Returns what the JSON files beside an array file say, as one dict."""
    config = {}
    for name in SIDECARS:
        if (folder / name).exists():
            try:
                content = json.loads((folder / name).read_text())
            except ValueError as error:
                raise InputError(
                    f"{name} must be JSON. Received: {folder / name} ({error})."
                ) from error
            if not isinstance(content, dict):
                raise InputError(f"{name} must hold an object. Received: {folder / name}.")
            config.update(content.get("image_processor", content))
    return config
