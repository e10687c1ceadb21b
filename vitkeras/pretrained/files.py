"""Detects what a path holds: an array file of a known format, or a model of this package."""

import contextlib
import os
import zipfile
from collections.abc import Iterator

from etils import epath

from vitkeras.errors import InputError
from vitkeras.io.atomic import local_copy
from vitkeras.io.keras_files import load_keras_file
from vitkeras.io.run_directory import RunDirectory
from vitkeras.pretrained.archives import open_npz, open_safetensors, parsing
from vitkeras.pretrained.formats import big_vision, bit, google, hugging_face, timm
from vitkeras.pretrained.metadata import read_metadata

FORMATS = (google, big_vision, bit, hugging_face, timm)
SUPPORTED = (
    "a .npz file of Google's vision_transformer, big_vision or BiT; a .safetensors file of Hugging "
    "Face ViT or DINOv2 or of timm, or the folder with it and its config.json; a run directory; or "
    "a .keras file of this package"
)


def check_path(path: epath.PathLike) -> epath.PathLike:
    """Returns a path.

    Raises:
        InputError: If it is neither a string nor a path.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise InputError(f"`path` must be {SUPPORTED}. Received: {path!r:.80}.")
    return path


@contextlib.contextmanager
def open_weights(path: epath.PathLike) -> Iterator[tuple]:
    """Opens weights; the format is detected from the contents.

    Args:
        path: A file or folder, on a local disk or in an object store (gs://...).
    Yields:
        `("model", model, {})` for a model that this package saved; otherwise
        `(format, arrays, metadata)`: one of `FORMATS`, the open `Arrays`, and the content of the
        JSON files beside them.
    Raises:
        InputError: If the path does not exist, or the format is not supported.
    """
    with contextlib.ExitStack() as stack:
        with parsing(check_path(path)):
            opened = _open(path, stack)
        yield opened


def _open(path, stack):
    """Returns what `open_weights` yields; `stack` closes it."""
    scheme, colon, _ = str(path).partition("://")
    if colon and scheme not in ("gs", "s3", "file"):
        raise InputError(
            f"`path` must be {SUPPORTED}. Received: {path}, a URL. Download it before, for example "
            "with keras.utils.get_file(origin=URL)."
        )
    path = epath.Path(path)
    if not path.exists():
        raise InputError(f"`path` must be {SUPPORTED}. Received: {path}, which does not exist.")
    if path.is_dir():
        if (path / "class_names.json").exists():
            return "model", RunDirectory(path).load_model(), {}
        path = _file_in_folder(path)
    local = stack.enter_context(local_copy(path))
    kind = _detect_kind(local, path)
    if kind == "keras":
        return "model", load_keras_file(local), {}
    arrays = stack.enter_context(open_npz(local) if kind == "npz" else open_safetensors(local))
    arrays.path = path
    for format in FORMATS:
        if format.matches(arrays.shapes):
            return format, arrays, read_metadata(path.parent) if kind != "npz" else {}
    names = ", ".join(list(arrays.shapes)[:5]) or "none"
    raise InputError(
        f"`path` must be {SUPPORTED}. Received: {path}, whose array names belong to no "
        f"supported format: {names}, ..."
    )


def _file_in_folder(folder):
    """Returns the weight file of a Hugging Face or timm folder."""
    if (folder / "model.safetensors").exists():
        return folder / "model.safetensors"
    names = sorted(child.name for child in folder.iterdir())
    if any(name.endswith(".safetensors.index.json") for name in names):
        raise InputError(
            "Weights must be in one file: save them again with "
            "`save_pretrained(..., max_shard_size='100GB')`. "
            f"Received: the folder {folder}, which holds several shards."
        )
    if "pytorch_model.bin" in names:
        raise _pickle(folder / "pytorch_model.bin")
    raise InputError(
        f"`path` must be {SUPPORTED}. Received: the folder {folder}, which has no "
        f"model.safetensors but {', '.join(names[:5]) or 'no files'}."
    )


def _detect_kind(local, path):
    """Returns keras, npz or safetensors."""
    with open(local, "rb") as file:
        start = file.read(9)
    if start.startswith(b"PK\x03\x04"):
        try:
            with zipfile.ZipFile(local) as archive:
                names = archive.namelist()
        except (zipfile.BadZipFile, NotImplementedError, ValueError):
            return "npz"  # opening it reports the damage
        if "model.weights.h5" in names and "config.json" in names:
            return "keras"
        if any(name.endswith("data.pkl") for name in names):
            raise _pickle(path)
        return "npz"
    if start.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        raise _pickle(path)
    if len(start) == 9 and start[8:] == b"{":
        return "safetensors"
    if start.startswith(b"\x89HDF"):
        raise InputError(
            f"`path` must be {SUPPORTED}. Received: {path}, an HDF5 file. Read a .weights.h5 file "
            "with `load_weights` of the Keras model that wrote it; Keras cannot load whole models "
            'of this package from .h5. Save them with `model.save("NAME.keras")`.'
        )
    raise InputError(
        f"`path` must be {SUPPORTED}. Received: {path}, which starts with the bytes {start[:8]!r}."
    )


def _pickle(path):
    return InputError(
        f"A weight file must hold arrays only. Received: {path}, a PyTorch pickle, which could "
        "execute code when it is read. If you trust it, convert it to safetensors "
        "(safetensors.torch.save_file)."
    )
