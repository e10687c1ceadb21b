"""Atomic writes: a file or directory appears complete or not at all, even if the process is killed.

On a local disk the content is written to a temporary sibling, fsynced and renamed. In an object
store (gs://...) a directory cannot be renamed, but an object appears only when its upload is
complete: there the last file of a directory, its marker, shows that the directory is complete.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from etils import epath


def is_remote(path: epath.PathLike) -> bool:
    """Returns whether a path is in an object store, such as gs://."""
    return "://" in str(path)


def write_file(path: epath.PathLike, content: bytes) -> None:
    """Writes a file atomically."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def atomic_file(path: epath.PathLike) -> Iterator[Path]:
    """Yields a local path to write to, then moves that file to `path` atomically."""
    path = epath.Path(path)
    if is_remote(path):
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / path.name
            path.write_bytes((Path(folder) / path.name).read_bytes())
        return
    with staging_directory(path) as folder:
        folder.mkdir(exist_ok=True)
        yield folder / path.name
        fsync(folder / path.name)
        os.replace(folder / path.name, path)
        fsync(path.parent)
        folder.rmdir()


@contextlib.contextmanager
def local_copy(path: epath.PathLike) -> Iterator[Path]:
    """Yields a local path with the content of `path`, which may be in an object store."""
    path = epath.Path(path)
    if not is_remote(path):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / path.name).write_bytes(path.read_bytes())
        yield Path(folder) / path.name


def write_directory(
    path: epath.PathLike,
    files: dict[str, Callable[[IO[bytes]], object] | bytes],
    replace: bool = False,
) -> None:
    """Writes a directory atomically.

    Args:
        path: The directory, which must not exist yet unless `replace` is true.
        files: From file name to the content, or to a function that writes it to an open binary
            file without seeking. Written in this order; the last one is the marker that
            `is_complete` looks for.
        replace: Whether a directory of an earlier call with these files is removed first; if the
            process is killed at that moment, there is none.
    """
    path, marker = epath.Path(path), list(files)[-1]
    if is_remote(path):
        if replace and path.exists():
            remove_directory(path, marker)
        path.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            with (path / name).open("wb") as file:
                _write(file, content)
        return
    with staging_directory(path) as folder:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            with open(folder / name, "wb") as file:
                _write(file, content)
        if replace and path.exists():
            remove_directory(path, marker)
        publish(folder, path)


def _write(file, content):
    if callable(content):
        content(file)
    else:
        file.write(content)


@contextlib.contextmanager
def staging_directory(path: epath.PathLike) -> Iterator[Path]:
    """Yields the name of a local temporary sibling of `path`; removes it after an error.

    The caller creates it, writes into it and passes it to `publish`.
    """
    path = epath.Path(path)
    folder = Path(path.with_name(f".{path.name}.{os.getpid()}"))
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def publish(folder: Path, path: epath.PathLike) -> None:
    """Fsyncs a staging directory and renames it to `path`, which must not exist or be empty."""
    for root, _, names in os.walk(folder):
        for name in names:
            fsync(os.path.join(root, name))
        fsync(root)
    os.rename(folder, path)
    fsync(epath.Path(path).parent)


def is_complete(path: epath.Path, marker: str) -> bool:
    """Returns whether a directory of `write_directory` is complete."""
    return not path.name.startswith(".") and (path / marker).exists()


def remove_directory(path: epath.PathLike, marker: str) -> None:
    """Removes a directory of `write_directory`, its marker first."""
    path = epath.Path(path)
    with contextlib.suppress(FileNotFoundError):
        (path / marker).unlink()
    path.rmtree()


def remove_stale_staging(folder: epath.PathLike) -> None:
    """Removes staging directories that killed processes left. Only for the holder of the lock."""
    folder = epath.Path(folder)
    if is_remote(folder) or not folder.exists():
        return
    for path in Path(folder).glob(".*.*"):
        if path.suffix[1:].isdecimal():  # the writer's process id
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def fsync(path: epath.PathLike) -> None:
    """Blocks until a local file or directory is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
