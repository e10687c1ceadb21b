"""Exclusive locks on local directories, released when the process ends, however it ends."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import filelock
from etils import epath

from vitkeras.errors import InputError
from vitkeras.io.atomic import is_remote


@contextlib.contextmanager
def exclusive_lock(folder: epath.PathLike, timeout: float = 0) -> Iterator[None]:
    """Holds the lock of a directory. An object store has no locks: there this does nothing.

    Args:
        folder: The directory, which must exist.
        timeout: Seconds to wait for another process; -1 for no limit.
    Raises:
        InputError: If another process still holds it, or the directory is not writable.
    """
    if is_remote(folder):
        yield
        return
    lock = filelock.FileLock(Path(folder) / ".lock", timeout=timeout)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise InputError(
            f"A directory can be written by one process at a time. Received: {folder}, which "
            "another process is using. Wait for it, or choose another directory."
        ) from error
    except OSError as error:
        raise InputError(
            f"The directory must be writable. Received: {folder} ({error.strerror})."
        ) from error
    try:
        yield
    finally:
        lock.release()
