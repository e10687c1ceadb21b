"""A data source that reads a folder of images with one sub-folder per class."""

import hashlib
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from absl import logging

from vitkeras.arguments import did_you_mean
from vitkeras.data.examples import InMemoryExamples
from vitkeras.data.folder_listing import (
    find_splits,
    is_folder,
    list_classes,
    printable,
    stamp,
)
from vitkeras.data.splits import SPLITS, select_shots, stratified_split
from vitkeras.data.validation import decode_files
from vitkeras.errors import InputError


class FolderSource:
    """A folder of JPEG, PNG and WebP images with one sub-folder per class.

    If the folder has train/ and test/ (and optionally validation/), in any case and with the names
    of `folder_listing.SPLIT_FOLDERS`, these are the splits, and a missing validation split is 10 %
    of train. Otherwise the splits are 80 %, 10 % and 10 %. Both are stratified by class and depend
    on the seed. Images that cannot be decoded are left out and listed in `bad_images`, other files
    in `other_files`.

    Args:
        path: The folder, on a local disk or in an object store (gs://...).
        seed: Selects the split and the shots.
        validation_percent: Percentage of the validation split where there is none; None for 10.
        shots: Number of training images per class, among those that can be decoded; None for all.
        sample: Number of files of each split that are decoded for validation; the others are
            assumed to be decodable. None for all.
    Raises:
        InputError: If the folder or a class in it is missing or empty.
    """

    _allow_empty_classes = False

    def __init__(
        self,
        path: str,
        seed: int = 0,
        validation_percent: float | None = None,
        shots: int | None = None,
        sample: int | None = None,
    ):
        self.path = str(path).rstrip("/")
        self.seed, self.shots, self.sample = seed, shots, sample
        self.bad_images: list[tuple[str, str]] = []  # pairs (path relative to the folder, reason)
        self.other_files: list[str] = []
        self._validated: dict[str, Any] = {}
        if not is_folder(self.path):
            raise InputError(f"`folder:PATH` must be an existing folder. Received: {path}.")
        self._find_files((validation_percent or 10) / 100)

    def _find_files(self, fraction):
        """Sets the class names and the files and labels of each split."""
        folders = find_splits(self.path)
        if folders:
            self._read_splits(folders, fraction)
        else:
            self.class_names, files, labels = self._list("")
            self._split(
                files, labels, {"train": 0.9 - fraction, "validation": fraction, "test": 0.1}
            )

    def _list(self, folder):
        listing = list_classes(f"{self.path}/{folder}".rstrip("/"), self._allow_empty_classes)
        prefix = folder and f"{folder}/"
        self.bad_images += [(prefix + file, reason) for file, reason in listing.bad]
        self.other_files += [prefix + file for file in listing.other]
        return listing.class_names, [prefix + file for file in listing.files], listing.labels

    def _read_splits(self, folders, fraction):
        logging.info("The splits are the folders %s.", ", ".join(folders.values()))
        train = folders["train"]
        self.class_names, files, labels = self._list(train)
        if "validation" in folders:
            self.files = {"train": (files, labels)}
        else:
            self._split(files, labels, {"train": 1 - fraction, "validation": fraction})
        for split in [split for split in folders if split != "train"]:
            rule = f"Every class in {folders[split]}/ must be in {train}/ too."
            self.files[split] = self._list_known(folders[split], rule)

    def _list_known(self, folder, rule):
        """Returns files and labels of a folder whose classes must be among the class names."""
        names, files, labels = self._list(folder)
        known = {name: label for label, name in enumerate(self.class_names)}
        unknown = [name for name in names if name not in known]
        if unknown:
            raise InputError(
                f"{rule} Received: {unknown[:5]}.{did_you_mean(unknown[0], self.class_names)}"
            )
        return files, np.array([known[name] for name in names])[labels]

    def _split(self, files, labels, fractions):
        splits = stratified_split(files, labels, fractions, self.seed)
        self.files = {
            split: ([files[i] for i in indices], labels[indices])
            for split, indices in splits.items()
        }

    def validate(self, split: str) -> "ValidatedSplit":
        """Decodes every file of a split unless it was decoded before, and selects the shots.

        Raises:
            InputError: If the split has no image that can be decoded, or too few for `shots`.
        """
        if split not in self._validated:
            self._validated[split] = self._validate(split, *self.files[split])
        return self._validated[split]

    def _validate(self, split, files, labels):
        if not files:
            raise InputError(
                f"A split must have an image. Received: {self.path}, split {split}, with none. "
                "Add images: every class needs at least 3."
            )
        indices = np.arange(len(files))
        if self.sample is not None and self.sample < len(files):
            rng = np.random.default_rng(self.seed)
            indices = np.sort(rng.choice(indices, self.sample, replace=False))
        stamps, reasons = {}, {}
        for i in indices.tolist():
            try:
                stamps[i] = stamp(f"{self.path}/{files[i]}")
            except OSError as error:
                reasons[i] = f"the file cannot be read ({error.strerror})"
        decoded = list(stamps)
        found, hashes = decode_files(self.path, [files[i] for i in decoded], stamps.values())
        reasons |= {decoded[i]: reason for i, reason in found.items()}
        contents = dict(zip(decoded, hashes.tolist(), strict=True))
        bad = [(printable(files[i]), reason) for i, reason in sorted(reasons.items())]
        if len(bad) == len(files):
            raise InputError(
                f"A split must have an image that can be decoded. Received: {self.path}, split "
                f"{split}, with {len(files)} files, of which none can be decoded. The first is "
                f"{bad[0][0]}: {bad[0][1]}."
            )
        kept = [i for i in range(len(files)) if i not in reasons]
        if split == "train" and self.shots is not None:
            names = [files[i] for i in kept]
            selected = select_shots(names, labels[kept], self.shots, self.seed, self.class_names)
            kept = [kept[i] for i in selected]
        self.bad_images += bad
        return ValidatedSplit(
            [files[i] for i in kept],
            labels[kept],
            [stamps.get(i) for i in kept],
            [contents.get(i, 0) for i in kept],
        )

    def num_examples(self, split: str) -> int:
        """Returns the number of examples of a split that can be decoded."""
        return len(self.validate(split).files)

    def num_listed(self, split: str) -> int:
        """Returns the number of files of a split, without decoding them."""
        return len(self.files[split][0])

    def labels(self, split: str) -> np.ndarray:
        """Returns the labels of a split, in the order of its examples."""
        return self.validate(split).labels

    def example_paths(self, split: str) -> list[str]:
        """Returns the paths of the image files of a split that can be decoded."""
        return [f"{self.path}/{file}" for file in self.validate(split).files]

    def fingerprint(self) -> dict[str, Any]:
        """Returns the sizes of the splits and a hash of all names, labels and contents.

        Contents that are not decoded because of `sample` are not in the hash.
        """
        digest = hashlib.sha256()
        for split in SPLITS:
            files, labels, _, hashes = self.validate(split)
            for row in zip(files, labels, hashes, strict=True):
                digest.update("\0".join([split, *map(str, row)]).encode() + b"\n")
        sizes = {split: self.num_examples(split) for split in SPLITS}
        return {**sizes, "files_sha256": digest.hexdigest()[:16]}

    def version(self, split: str) -> str:
        """Returns a string that changes when a file of a split changes."""
        digest = hashlib.sha256(self.path.encode())
        for row in zip(*self.validate(split), strict=True):
            digest.update(repr(row).encode())
        return digest.hexdigest()

    def examples(self, split: str) -> InMemoryExamples:
        """Returns the examples of a split; a row has the path of the file, which `load` reads."""
        files, labels, *_ = self.validate(split)
        folder = self.path

        def load(row):
            image_bytes = tf.io.read_file(tf.strings.join([folder, row["file"]], "/"))
            return {"image_bytes": image_bytes, "label": row["label"]}

        return InMemoryExamples(
            {"file": tf.constant(files), "label": tf.constant(labels, tf.int64)}, load
        )


class ValidatedSplit(NamedTuple):
    """The files of a split that can be decoded: relative path, label, `stamp` and content hash."""

    files: list[str]
    labels: np.ndarray
    stamps: list[str | None]
    hashes: list[int]
