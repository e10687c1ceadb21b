"""Safe reading of array files: no code is executed, and no header is trusted before it is checked.

Both kinds of file are opened the same way: names and shapes first, checked against the size of the
file; arrays one by one, when they are requested.
"""

import contextlib
import math
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import safe_open

from vitkeras.errors import InputError

FLOATS = ("float16", "float32", "float64", "bfloat16")
#: The largest ratio that DEFLATE can reach.
DEFLATE_LIMIT = 1032
#: Trained weights hardly compress; an archive that expands by more is a zip bomb.
MAX_EXPANSION = 100


class Arrays:
    """The arrays of an open file.

    Args:
        path: File name, for messages.
        shapes: From name to shape.
        read: Function that returns the array of a name.
    """

    def __init__(
        self,
        path: Path,
        shapes: dict[str, tuple[int, ...]],
        read: Callable[[str], np.ndarray],
    ):
        self.path, self.shapes, self._read = path, shapes, read

    def read(self, name: str) -> np.ndarray:
        """Returns an array as float32; a float64 array stays float64.

        Raises:
            InputError: If it is damaged, not of a floating-point type, or not finite.
        """
        with parsing(self.path, name):
            value = self._read(name)
        if value.dtype == np.dtype("V2"):  # how NumPy stores bfloat16
            value = value.view(ml_dtypes.bfloat16)
        if value.dtype.name not in FLOATS:
            raise InputError(
                f"Weights must be of type {', '.join(FLOATS)}. "
                f"Received: {self.path}, {name}: {value.dtype}."
            )
        value = value.astype("float64" if value.dtype == np.float64 else "float32")
        if not np.isfinite(value).all():
            raise InputError(f"Weights must be finite. Received: {self.path}, {name}.")
        return value


@contextlib.contextmanager
def open_npz(path: Path) -> Iterator[Arrays]:
    """Yields the `Arrays` of a NumPy archive.

    Raises:
        InputError: If the file is damaged, truncated, holds pickles, or declares more data than it
            holds.
    """
    with contextlib.ExitStack() as stack:
        with parsing(path):
            archive = stack.enter_context(zipfile.ZipFile(path))
            shapes, members = _npz_members(archive, path)

        def read(name):
            with archive.open(members[name]) as member:
                value = np.lib.format.read_array(member, allow_pickle=False)
                member.read(1)  # zipfile compares the checksum at the end of the member
            return value

        yield Arrays(path, shapes, read)


def _npz_members(archive, path):
    """Returns the shapes and the members of an archive by name."""
    size = path.stat().st_size
    shapes, members, declared = {}, {}, 0
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        with parsing(path, name):
            shapes[name] = _npy_shape(archive, info, size)
        if name in members:
            raise _damaged(path, f"{name} occurs twice")
        members[name] = info
        declared += info.file_size
    if declared > MAX_EXPANSION * size + 2**24:
        raise _damaged(path, f"{size:,} bytes would expand to {declared:,}")
    return shapes, members


def _npy_shape(archive, info, size):
    """Returns the shape in a member's header after checking it against the declared sizes."""
    if info.header_offset + info.compress_size > size:
        raise ValueError("it ends after the end of the file")
    if info.file_size > DEFLATE_LIMIT * info.compress_size + 1024:
        raise ValueError(
            f"it declares {info.file_size:,} bytes in {info.compress_size:,}, which is impossible"
        )
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(member)
        else:
            shape, _, dtype = np.lib.format.read_array_header_2_0(member)
        if dtype.hasobject:
            raise ValueError("it is a pickle, which could execute code")
        if any(side < 0 for side in shape):
            raise ValueError(f"its shape is {shape}")
        declared = math.prod(shape) * dtype.itemsize
        actual = info.file_size - member.tell()
        if declared != actual:
            raise ValueError(f"its header declares {declared:,} bytes, but it has {actual:,}")
    return tuple(shape)


@contextlib.contextmanager
def open_safetensors(path: Path) -> Iterator[Arrays]:
    """Yields the `Arrays` of a safetensors file.

    Raises:
        InputError: If the file is damaged, truncated, or declares more data than it holds.
    """
    with contextlib.ExitStack() as stack:
        with parsing(path):
            file = stack.enter_context(safe_open(path, framework="np"))
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        yield Arrays(path, shapes, file.get_tensor)


@contextlib.contextmanager
def parsing(path, name: str = "") -> Iterator[None]:
    """Converts whatever a parser raises for a damaged file to `InputError`.

    Args:
        path: The file, for the message.
        name: What is read of it, for the message.
    """
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        text = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
        raise _damaged(path, f"{name}: {text}" if name else text) from error


def _damaged(path, reason):
    return InputError(
        f"A weight file must be complete and hold arrays only. Received: {path}, which is damaged "
        f"or truncated: {reason}."
    )
