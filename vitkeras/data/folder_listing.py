"""Lists a folder of images, on a local disk or in an object store, without opening a file."""

import os
import stat
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from vitkeras.errors import InputError
from vitkeras.io.atomic import is_remote

#: Suffixes of the files that are read. The format is detected from their contents.
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp")
#: Suffixes of images in formats that are not read. Such files count as bad images.
OTHER_IMAGES = (
    ".avif", ".bmp", ".gif", ".heic", ".heif", ".ico", ".jp2", ".jxl", ".svg", ".tif", ".tiff",
)  # fmt: skip
#: Files and folders of operating systems, in lower case. Names that start with a dot are ignored
#: too.
JUNK = (
    "$recycle.bin", "@eadir", "__macosx", "desktop.ini", "ehthumbs.db", "lost+found",
    "system volume information", "thumbs.db",
)  # fmt: skip
#: Names of the folders of a split, in any case.
SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}


class Listing(NamedTuple):
    """The files of a folder with one sub-folder per class.

    Args:
        class_names: Sorted names of the classes.
        files: Paths of the images, relative to the folder.
        labels: Label of each image.
        bad: Pairs (path, reason) of images that cannot be read.
        other: Paths of files that are no images.
    """

    class_names: list[str]
    files: list[str]
    labels: np.ndarray
    bad: list[tuple[str, str]]
    other: list[str]


def is_folder(path: str) -> bool:
    """Returns whether a path is a directory."""
    return tf.io.gfile.isdir(path) if is_remote(path) else os.path.isdir(path)


def list_classes(folder: str, allow_empty: bool = False) -> Listing:
    """Lists the classes of a folder and the files of each.

    Args:
        folder: A local path, or gs://BUCKET/FOLDER.
        allow_empty: Whether a class may have no image.
    Raises:
        InputError: If there is no class folder, or one without an image, or a folder cannot be
            read.
    """
    names = list_folders(folder)
    if not names:
        raise InputError(
            "A folder of images must have one sub-folder per class. "
            f"Received: {folder}, which has no sub-folder."
        )
    listing = Listing(names, [], np.zeros(0, int), [], [])
    counts = []
    for name in names:
        if not _is_utf8(name):
            raise InputError(
                "The name of a class folder must be UTF-8. "
                f"Received: {printable(f'{folder}/{name}')}. Rename the folder."
            )
        images = []
        files = (file[len(folder) + 1 :] for file in walk_files(f"{folder}/{name}"))
        for file in sorted(files):
            suffix = os.path.splitext(file)[1].lower()
            if suffix in SUFFIXES and _is_utf8(file):
                images.append(file)
            elif suffix in SUFFIXES:
                listing.bad.append((printable(file), "the name is not UTF-8; rename the file"))
            elif suffix in OTHER_IMAGES:
                reason = f"{suffix} files are not read; convert it to JPEG, PNG or WebP"
                listing.bad.append((printable(file), reason))
            else:
                listing.other.append(printable(file))
        if not images and not allow_empty:
            raise InputError(
                f"Every class folder must have {', '.join(SUFFIXES)} files. "
                f"Received: {printable(f'{folder}/{name}')}, which has none. Add images or remove "
                "the folder."
            )
        listing.files.extend(images)
        counts.append(len(images))
    return listing._replace(labels=np.repeat(np.arange(len(names)), counts))


def find_splits(folder: str, required: Sequence[str] = ("train", "test")) -> dict[str, str]:
    """Returns the folder of each split by split; empty if the sub-folders are classes.

    Args:
        folder: A folder whose sub-folders are splits or classes.
        required: Splits that a folder with splits must have.
    Raises:
        InputError: If some sub-folders look like splits and others do not, two are the same split,
            or a required split is missing.
    """
    names = list_folders(folder)
    found: dict[str, list[str]] = {
        split: [name for name in names if name.lower() in aliases]
        for split, aliases in SPLIT_FOLDERS.items()
    }
    candidates = [name for group in found.values() for name in group]
    nested = [name for name in candidates if list_folders(f"{folder}/{name}")]
    others = sorted(set(names) - set(candidates))
    if not candidates or (others and not nested):
        return {}
    if others or len(nested) < len(candidates):
        raise InputError(
            "The sub-folders must be either splits, with one folder per class in each, or classes. "
            f"Received: {printable(folder)}, with the splits {nested} and other folders "
            f"{sorted(set(names) - set(nested))[:5]}. Move or rename one of them."
        )
    if any(len(group) > 1 for group in found.values()):
        raise InputError(
            "There must be one folder per split. "
            f"Received: {printable(folder)}, with {candidates}. Merge or rename them."
        )
    if not all(found[split] for split in required):
        raise InputError(
            "A folder with splits must have train/ and test/; validation/ is optional. "
            f"Received: {printable(folder)}, with {candidates}. Rename or copy a split."
        )
    return {split: group[0] for split, group in found.items() if group}


def list_folders(folder: str) -> list[str]:
    """Returns the sorted names of the sub-folders, without hidden ones and `JUNK`.

    Raises:
        InputError: If the folder cannot be read.
    """
    try:
        if is_remote(folder):
            entries = [name.rstrip("/") for name in tf.io.gfile.listdir(folder)]
            names = [name for name in entries if is_folder(f"{folder}/{name}")]
        else:
            with os.scandir(folder) as scan:
                names = [entry.name for entry in scan if entry.is_dir()]
    except OSError as error:
        raise _unreadable(error) from error
    return sorted(name for name in names if not is_junk(name))


def walk_files(folder: str) -> Iterator[str]:
    """Yields the paths of all files of a folder and its sub-folders, sorted within each.

    Hidden ones and `JUNK` are left out.

    Raises:
        InputError: If a folder cannot be read.
    """

    def fail(error):
        raise _unreadable(error)

    folder = folder.rstrip("/") or "/"
    walk = tf.io.gfile.walk(folder) if is_remote(folder) else os.walk(folder, onerror=fail)
    for root, folders, files in walk:
        folders[:] = sorted(each for each in folders if not is_junk(each.rstrip("/")))
        root = root.rstrip("/")
        if any(is_junk(part) for part in root[len(folder) :].split("/") if part):
            continue  # in an object store, where all folders are listed
        for file in sorted(files):
            if not is_junk(file):
                yield f"{root}/{file}"


def _unreadable(error):
    return InputError(
        f"A folder of images must be readable. Received: {printable(str(error.filename))} "
        f"({error.strerror})."
    )


def is_junk(name: str) -> bool:
    """Returns whether a file or folder is hidden, or belongs to an operating system."""
    return name.startswith(".") or name.lower() in JUNK


def _is_utf8(path):
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(path: str) -> str:
    """Returns a path in one line of printable characters; others become escape sequences."""
    path = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in path)


def stamp(file: str) -> str:
    """Returns a string that changes when a local file changes; empty in an object store.

    An object store would need a request per file.

    Raises:
        OSError: If the file is missing, or not a regular file.
    """
    if is_remote(file):
        return ""
    status = os.stat(file)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(0, "it is not a regular file")
    return f"{status.st_size} {status.st_mtime_ns}"
