"""Safe reading of array files: no code is executed, and no header is trusted before it is checked.

Both kinds of file are opened the same way: names and shapes first, checked against the size of the
file; arrays one by one, when they are requested.
"""

import contextlib
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

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
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise _damaged(path, error) from error
    with archive:
        size = path.stat().st_size
        shapes, members, declared = {}, {}, 0
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            try:
                shapes[name] = _npy_shape(archive, info, size)
            except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError,
                    NotImplementedError, RuntimeError) as error:  # fmt: skip
                raise _damaged(path, f"{name}: {error}") from error
            if name in members:
                raise _damaged(path, f"{name} occurs twice")
            members[name] = info
            declared += info.file_size
        if declared > MAX_EXPANSION * size + 2**24:
            raise _damaged(path, f"{size:,} bytes would expand to {declared:,}")

        def read(name):
            try:
                with archive.open(members[name]) as member:
                    value = np.lib.format.read_array(member, allow_pickle=False)
                    member.read(1)  # zipfile compares the checksum at the end of the member
            except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError) as error:
                raise _damaged(path, f"{name}: {error}") from error
            return value

        yield Arrays(path, shapes, read)


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
    try:
        file = safe_open(path, framework="np")
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from error
    with file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118

        def read(name):
            try:
                return file.get_tensor(name)
            except (SafetensorError, KeyError, TypeError, AttributeError) as error:
                raise _damaged(path, f"{name}: {error}") from error

        yield Arrays(path, shapes, read)


def _damaged(path, reason):
    return InputError(
        f"A weight file must be complete and hold arrays only. Received: {path}, which is damaged "
        f"or truncated: {reason}."
    )
