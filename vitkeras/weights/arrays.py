"""Safe reading of array files: no code runs, and nothing is allocated on a header's word alone.

Both kinds of file are opened the same way: names and shapes first, checked against what the file
can hold; arrays one by one, when they are asked for.
"""

import contextlib
import math
import zipfile
import zlib

import ml_dtypes  # Keras needs it too
import numpy as np
from safetensors import SafetensorError, safe_open

from vitkeras.errors import InputError

FLOATS = ("float16", "float32", "float64", "bfloat16")
#: No deflated byte stands for more than this many.
DEFLATE_LIMIT = 1032
#: Real weights hardly shrink; a file that grows by more than this is made to fill the memory.
LARGEST_GROWTH = 100


class Arrays:
    """The arrays of an open file.

    Args:
        path: The file, for messages.
        shapes: From name to shape.
        read: Returns the array of a name.
    """

    def __init__(self, path, shapes, read):
        self.path, self.shapes, self._read = path, shapes, read

    def read(self, name):
        """Returns an array as float32, or as float64 where it is that.

        Raises:
            InputError: If it is damaged, holds no floats, or not only finite ones.
        """
        value = self._read(name)
        if value.dtype == np.dtype("V2"):  # what NumPy makes of a bfloat16
            value = value.view(ml_dtypes.bfloat16)
        if value.dtype.name not in FLOATS:
            raise InputError(
                f"Weights must be of a type among {', '.join(FLOATS)}. "
                f"Received: {self.path}, {name}: {value.dtype}."
            )
        value = value.astype("float64" if value.dtype == np.float64 else "float32")
        if not np.isfinite(value).all():
            raise InputError(
                f"Weights must be finite. Received: {self.path}, {name}, which holds infinity or "
                "NaN."
            )
        return value


@contextlib.contextmanager
def open_npz(path):
    """Gives the `Arrays` of a NumPy archive.

    Raises:
        InputError: If the file is damaged, cut short, holds pickles, or declares what it cannot
            hold.
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
                raise _damaged(path, f"{name} is in it twice")
            members[name] = info
            declared += info.file_size
        if declared > LARGEST_GROWTH * size + 2**24:
            raise _damaged(path, f"its {size:,} bytes would grow to {declared:,}")

        def read(name):
            try:
                with archive.open(members[name]) as member:
                    value = np.lib.format.read_array(member, allow_pickle=False)
                    member.read(1)  # at the end the checksum is compared
            except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError) as error:
                raise _damaged(path, f"{name}: {error}") from error
            return value

        yield Arrays(path, shapes, read)


def _npy_shape(archive, info, size):
    """Returns the shape in a member's header, once the sizes around it agree."""
    if info.header_offset + info.compress_size > size:
        raise ValueError("it would end behind the file")
    if info.file_size > DEFLATE_LIMIT * info.compress_size + 1024:
        raise ValueError(
            f"{info.compress_size:,} bytes are said to hold {info.file_size:,}, which cannot be"
        )
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(member)
        else:
            shape, _, dtype = np.lib.format.read_array_header_2_0(member)
        if dtype.hasobject:
            raise ValueError("it is a pickle, which could run any code")
        if any(side < 0 for side in shape):
            raise ValueError(f"its shape is {shape}")
        declared = math.prod(shape) * dtype.itemsize
        if declared != info.file_size - member.tell():
            raise ValueError(
                f"its header declares {declared:,} bytes, but {info.file_size - member.tell():,} "
                "follow"
            )
    return tuple(shape)


@contextlib.contextmanager
def open_safetensors(path):
    """Gives the `Arrays` of a safetensors file.

    Raises:
        InputError: If the file is damaged, cut short, or declares what it does not hold.
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
        "A weight file must be whole and hold plain arrays. "
        f"Received: {path}, which is damaged, cut short or not what it says: {reason}."
    )
