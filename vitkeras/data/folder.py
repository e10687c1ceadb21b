"""A folder of images with one sub-folder per class, as a source."""

import hashlib

import numpy as np
import tensorflow as tf

from vitkeras.data.checking import find_bad
from vitkeras.data.listing import is_folder, list_classes, stamp
from vitkeras.data.splits import SPLITS, choose_shots, stratified_split
from vitkeras.data.stored import Columns
from vitkeras.errors import InputError, nearest


class FolderSource:
    """A folder of JPEG and PNG images with one sub-folder per class.

    With sub-folders train/ and test/ (and perhaps validation/ or val/) these are the splits, and
    what is missing of validation is cut from train (10 %). Without them the split is 80/10/10.
    Both cuts are stratified by class and seeded. Files that cannot be decoded are left out and
    listed in `bad_images`.

    Args:
        path: The folder, on a disk or in an object store (gs://...).
        seed: Chooses the split and the shots.
        validation_percent: How much of what is cut is validation; None for 10.
        shots: Training images of each class, of those that can be decoded; None for all.
        say: Takes lines that tell how far the first reading of the images is; None for none.
        sample: Files of each split that are decoded beforehand, the others being taken for good
            ones; None for all.
    """

    def __init__(self, path, seed=0, validation_percent=None, shots=None, say=None, sample=None):
        self.path = str(path).rstrip("/")
        self.seed, self.shots, self.say, self.sample = seed, shots, say, sample
        self.bad_images = []  # (path below the folder, reason)
        self._checked = {}
        if not is_folder(self.path):
            raise InputError(f"`folder:PATH` must name a folder. Received: {path}.")
        share = (validation_percent or 10) / 100
        if self._has("train") and self._has("test"):
            self._read_splits(share)
        elif self._has("train") and self._validation_folders():
            # Else train and val would be taken for two classes.
            raise InputError(
                "A folder with train/ and validation/ or val/ must have test/ too. "
                f"Received: {path}. Rename or copy a split to test/."
            )
        else:
            self.class_names, files, labels = list_classes(self.path)
            self._cut(files, labels, {"train": 0.9 - share, "validation": share, "test": 0.1})

    def _has(self, name):
        return is_folder(f"{self.path}/{name}")

    def _validation_folders(self):
        return [name for name in ("validation", "val") if self._has(name)]

    def _list(self, folder):
        names, files, labels = list_classes(f"{self.path}/{folder}")
        return names, [f"{folder}/{file}" for file in files], labels

    def _read_splits(self, share):
        self.class_names, files, labels = self._list("train")
        validation = self._validation_folders()
        if validation:
            self.files = {"train": (files, labels)}
        else:
            self._cut(files, labels, {"train": 1 - share, "validation": share})
        for split, folder in [("test", "test")] + [("validation", n) for n in validation[:1]]:
            names, files, labels = self._list(folder)
            unknown = sorted(set(names) - set(self.class_names))
            if unknown:
                raise InputError(
                    f"Every class in {folder}/ must be in train/ too. Received: {unknown[:5]}, "
                    f"which train/ does not have.{nearest(unknown[0], self.class_names)}"
                )
            places = np.array([self.class_names.index(name) for name in names])
            self.files[split] = (files, places[labels])

    def _cut(self, files, labels, fractions):
        parts = stratified_split(files, labels, fractions, self.seed)
        self.files = {s: ([files[i] for i in part], labels[part]) for s, part in parts.items()}

    def check(self, split):
        """Decodes every file of a split, unless it is remembered as good.

        Returns:
            `[(path below the folder, reason)]` of those that fail.
        Raises:
            InputError: If the split has no image that can be decoded, or too few for the shots.
        """
        if split not in self._checked:
            files, labels = self.files[split]
            if not files:
                raise InputError(
                    "A split must have an image. Received: "
                    f"{self.path}, split {split}, with none. Give every class 3 images or more."
                )
            places = np.arange(len(files))
            if self.sample is not None and self.sample < len(files):
                rng = np.random.default_rng(self.seed)
                places = np.sort(rng.choice(places, self.sample, replace=False))
            stamps = {i: stamp(f"{self.path}/{files[i]}") for i in places.tolist()}
            found = find_bad(self.path, [files[i] for i in stamps], stamps.values(), self.say)
            reasons = {int(places[i]): reason for i, reason in found.items()}
            bad = [(files[i], reason) for i, reason in reasons.items()]
            if len(bad) == len(files):
                raise InputError(
                    f"A split must have an image that can be decoded. Received: {self.path}, split "
                    f"{split}, with {len(files)} files, the first of them "
                    f"{bad[0][0]}: {bad[0][1]}."
                )
            kept = [i for i in range(len(files)) if i not in reasons]
            if split == "train" and self.shots is not None:
                names = [files[i] for i in kept]
                chosen = choose_shots(names, labels[kept], self.shots, self.seed, self.class_names)
                kept = [kept[i] for i in chosen]
            names = [files[i] for i in kept]
            self._checked[split] = bad, names, labels[kept], [stamps.get(i) for i in kept]
            self.bad_images += bad
        return self._checked[split][0]

    def num_examples(self, split):
        """Number of examples of a split that can be decoded."""
        self.check(split)
        return len(self._checked[split][1])

    def labels(self, split):
        """Returns the labels of all examples of a split."""
        self.check(split)
        return self._checked[split][2]

    def fingerprint(self):
        """Returns a dict of strings and numbers: a hash of names and labels, split sizes."""
        sizes = {split: self.num_examples(split) for split in SPLITS}
        digest = hashlib.sha256()
        for split in SPLITS:
            _, files, labels, _ = self._checked[split]
            for file, label in zip(files, labels, strict=True):
                digest.update(f"{split}\0{file}\0{label}\n".encode())
        return {**sizes, "files_sha256": digest.hexdigest()[:16]}

    def version(self, split):
        """Returns a string that is another one when a file of the split is."""
        self.check(split)
        _, files, labels, stamps = self._checked[split]
        digest = hashlib.sha256(self.path.encode())
        for row in zip(files, labels, stamps, strict=True):
            digest.update(repr(row).encode())
        return digest.hexdigest()

    def stored(self, split):
        """Returns the examples of a split: names in memory, of which each image is read when due.

        Args:
            split: train, validation or test.
        """
        self.check(split)
        _, files, labels, _ = self._checked[split]
        folder = self.path

        def load(row):
            image_bytes = tf.io.read_file(tf.strings.join([folder, row["file"]], "/"))
            return {"image_bytes": image_bytes, "label": row["label"]}

        return Columns({"file": tf.constant(files), "label": tf.constant(labels, tf.int64)}, load)
