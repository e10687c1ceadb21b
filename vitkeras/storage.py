"""Files and folders that are there whole or not at all, whatever is killed when.

On this machine's disks: written aside, fsynced, renamed. On gs:// and its like there is no atomic
rename of a folder, but a file appears at once when it is closed; there the last file of a folder,
its marker, says that the folder is whole.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from etils import epath

from vitkeras.errors import InputError


def is_remote(path):
    """Whether a path lies in an object store, such as gs://."""
    return "://" in str(path)


def write_file(path, content: bytes):
    """Writes a file, whole or not at all."""
    with new_file(path) as place:
        Path(place).write_bytes(content)


@contextlib.contextmanager
def new_file(path):
    """Gives a path on this machine to write a file to, then moves it to `path`, whole."""
    path = epath.Path(path)
    if is_remote(path):
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / path.name
            path.write_bytes((Path(folder) / path.name).read_bytes())
        return
    with _aside(path) as folder:
        folder.mkdir(exist_ok=True)
        yield folder / path.name
        with open(folder / path.name, "rb") as file:
            os.fsync(file.fileno())
        os.replace(folder / path.name, path)
        to_disk(path.parent)
        folder.rmdir()


@contextlib.contextmanager
def local_file(path):
    """Gives a path on this machine to read a file from."""
    path = epath.Path(path)
    if not is_remote(path):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / path.name).write_bytes(path.read_bytes())
        yield Path(folder) / path.name


def write_folder(path, files: dict):
    """Writes a folder, whole or not at all.

    Args:
        path: The folder, which is not there yet.
        files: From file name to a function that writes into an open binary file (without seeking).
            They are written in this order; the last one is the marker that `is_whole` looks for.
    """
    path = epath.Path(path)
    if is_remote(path):
        path.mkdir(parents=True, exist_ok=True)
        for name, write in files.items():
            with (path / name).open("wb") as file:
                write(file)
        return
    with _aside(path) as folder:
        folder.mkdir(parents=True, exist_ok=True)
        for name, write in files.items():
            with open(folder / name, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
        to_disk(folder)
        os.rename(folder, path)
        to_disk(path.parent)


@contextlib.contextmanager
def _aside(path):
    """Gives a folder beside `path` to write in; nothing stays of it after an error."""
    folder = Path(path.with_name(f".{path.name}.{os.getpid()}"))
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def is_whole(path, marker):
    """Whether a folder that `write_folder` wrote is all there."""
    return not path.name.startswith(".") and (path / marker).exists()


def remove_folder(path, marker):
    """Removes a folder of `write_folder`, its marker first."""
    path = epath.Path(path)
    with contextlib.suppress(FileNotFoundError):
        (path / marker).unlink()
    path.rmtree()


def remove_leftovers(folder):
    """Removes what a killed process left half-written. Only for who just got the folder's lock."""
    folder = epath.Path(folder)
    if is_remote(folder) or not folder.exists():
        return
    for path in Path(folder).glob(".*.*"):
        if path.suffix[1:].isdecimal():  # the writer's process id
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextlib.contextmanager
def lock(folder):
    """Holds a folder for this process; the lock ends with the process, however that ends.

    An object store has no such locks: there this does nothing.

    Raises:
        InputError: If another process holds it.
    """
    if is_remote(folder):
        yield
        return
    with open(Path(folder) / ".lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                "A run directory holds one run at a time. Received: "
                f"{folder}, where another process is training. Wait for it, or choose another."
            ) from error
        yield


def to_disk(path):
    """Waits until a file or folder of this machine is on its disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
