"""Where examples come from: TensorFlow Datasets, the embedded digits, or a folder of images.

Every source has `class_names`, `num_examples(split)` and `examples(split, shuffle_seed, first)`.
Splits are always called train, validation and test, and the examples are
`{"image_bytes": string, "label": int64}`. `fingerprint()` tells one data set from another.
"""

import contextlib
import hashlib
import itertools
import re
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from vitkeras.data.preprocessing import decode_image
from vitkeras.data.splits import few_shots, stratified_split
from vitkeras.errors import InputError, check_range, nearest

SPLITS = ("train", "validation", "test")
SUFFIXES = (".jpg", ".jpeg", ".png")
SHUFFLE_BLOCK = 10_000


def open_source(dataset, data_dir=None, seed=0, validation_percent=None, shots=None):
    """Returns the source that a config's `dataset` names.

    Args:
        dataset: "digits", any name of TensorFlow Datasets, or "folder:PATH".
        data_dir: Where TensorFlow Datasets keeps its files; None for its default.
        seed: Chooses the split of a folder that has no split of its own, and the shots.
        validation_percent: How much of train is validation where the data set has none; None for
            what the source says.
        shots: Training examples of each class; None for all.
    Raises:
        InputError: If there is no such data set or folder, or it does not have what is needed.
    """
    if validation_percent is not None:
        fits = 0 < validation_percent < 90  # with the 10 % of a test split, there is a rest
        check_range("validation_percent", validation_percent, fits, "above 0 and below 90")
    if shots is not None:
        check_range("shots", shots, shots >= 1, "at least 1")
    kind, _, path = dataset.partition(":")
    if kind == "folder" and path:
        return FolderSource(path, seed, validation_percent, shots)
    return TFDSSource(dataset, data_dir, seed, validation_percent, shots)


class TFDSSource:
    """A data set of TensorFlow Datasets, made or downloaded on first use.

    It needs the features `image` and `label`. Where it has no validation split, the last 10 % of
    train (1 % from 100,000 examples on, as the paper has it for ImageNet) are that; where it has
    no test split with labels, its validation split is the test split, and validation is cut from
    train.

    Args:
        name: "digits", or a name as `tfds.builder` takes it.
        data_dir: Where its files are kept; None for the default of TensorFlow Datasets.
        seed: Chooses the shots.
        validation_percent: How much of train is validation where it is cut; None for as above.
        shots: Training examples of each class, chosen by their places in train; None for all.
    """

    def __init__(self, name, data_dir=None, seed=0, validation_percent=None, shots=None):
        self.bad_images = []
        self._read = {}
        if name == "digits":
            from vitkeras.data.digits import Digits

            tfds.disable_progress_bar()  # it takes a second
            self.builder = Digits(data_dir=data_dir)
        else:
            try:
                self.builder = tfds.builder(name, data_dir=data_dir)
            # An unknown version is an AssertionError.
            except (tfds.core.DatasetNotFoundError, ValueError, AssertionError) as error:
                names = ["digits", *tfds.list_builders(with_community_datasets=False)]
                raise InputError(
                    "`dataset` must be digits, a name of TensorFlow Datasets, or folder:PATH. "
                    f"Received: dataset={name!r}.{nearest(name, names)}"
                ) from error
        features = self.builder.info.features
        if not {"image", "label"} <= set(features or ()):
            raise InputError(
                "A data set must have the features image and label. "
                f"Received: dataset={name!r} with {sorted(features or ())}."
            )
        image, label = features["image"], features["label"]
        if not isinstance(image, tfds.features.Image) or not hasattr(label, "names"):
            raise InputError(
                "The feature image must be encoded images and label a class label. Received: "
                f"dataset={name!r} with {type(image).__name__} and {type(label).__name__}."
            )
        try:
            with contextlib.redirect_stdout(sys.stderr):
                self.builder.download_and_prepare()
        # What is to be downloaded by hand is missing (AssertionError), or there is no network.
        except (AssertionError, OSError, tfds.download.DownloadError) as error:
            raise InputError(
                "A data set must be prepared or downloadable. Received: "
                f"dataset={name!r}, data_dir={data_dir!r}: {error}"
            ) from error
        self.class_names = list(features["label"].names)
        self.splits = self._splits(validation_percent)
        self.chosen = None  # the places in train of the shots
        if shots is not None:
            labels = self._labels(self.splits["train"])
            names = map(str, itertools.count())
            self.chosen = _choose(names, labels, shots, seed, self.class_names)

    def _splits(self, percent):
        have = set(self.builder.info.splits)
        if "train" not in have:
            raise InputError(f"A data set must have a train split. Received: {sorted(have)}.")
        if "test" in have and next(self._labels("test"), 0) < 0:  # as ImageNet's, kept secret
            have.remove("test")
        if "validation" in have and "test" in have:
            return {split: split for split in SPLITS}
        many = self.builder.info.splits["train"].num_examples >= 100_000
        percent = percent or (1 if many else 10)
        own = [split for split in ("test", "validation") if split in have]
        end = 100 if own else 90
        return {
            "train": f"train[:{end - percent}%]",
            "validation": f"train[{end - percent}%:{end}%]",
            "test": own[0] if own else "train[90%:]",
        }

    def _labels(self, split):
        """Yields the labels of a split; nothing else is decoded."""
        wanted = tfds.decode.PartialDecoding({"label": True})
        data = self.builder.as_dataset(split=split, decoders=wanted, shuffle_files=False)
        for block in data.batch(SHUFFLE_BLOCK).as_numpy_iterator():
            yield from block["label"].tolist()

    def num_examples(self, split):
        """Number of examples of a split."""
        if split == "train" and self.chosen is not None:
            return len(self.chosen)
        return self.builder.info.splits[self.splits[split]].num_examples

    def fingerprint(self):
        """Returns a dict of strings and numbers: name, version, split sizes, hash of the shots."""
        found = {split: self.num_examples(split) for split in SPLITS}
        if self.chosen is not None:
            found["shots_sha256"] = hashlib.sha256(self.chosen.tobytes()).hexdigest()[:16]
        return {"name": self.builder.info.full_name, **found}

    def examples(self, split, shuffle_seed=None, first=0):
        """Returns the examples, shuffled in blocks of 10,000 if a seed is given.

        (TensorFlow Datasets already shuffled them once, over the whole split, when it wrote them.)

        Args:
            split: train, validation or test.
            shuffle_seed: Integer or scalar int64 tensor; the same seed, the same order.
            first: Examples to leave out in front, in that order.
        """
        if split not in self._read:
            with tf.init_scope():  # else, called by another data set, it would be read every epoch
                self._read[split] = self._examples(split)
        data = self._read[split]
        if shuffle_seed is not None:
            # Not Dataset.shuffle: its order depends on TensorFlow's global seed too.
            data = data.batch(SHUFFLE_BLOCK).flat_map(lambda block: _shuffled(block, shuffle_seed))
        return data.skip(first)

    def _examples(self, split):
        """Returns the examples as they are written, held in memory where they are few."""
        data = self.builder.as_dataset(
            split=self.splits[split],
            decoders=tfds.decode.PartialDecoding(
                {"image": True, "label": True}, {"image": tfds.decode.SkipDecoding()}
            ),
            shuffle_files=False,
        )
        if split == "train" and self.chosen is not None:
            data = _at(data, self.chosen)
        data = data.map(lambda x: {"image_bytes": x["image"], "label": x["label"]})
        return data.cache() if self.num_examples(split) <= SHUFFLE_BLOCK else data


class FolderSource:
    """A folder of JPEG and PNG images with one sub-folder per class.

    With sub-folders train/ and test/ (and perhaps validation/ or val/) these are the splits, and
    what is missing of validation is cut from train (10 %). Without them the split is 80/10/10.
    Both cuts are stratified by class and seeded. Files that cannot be decoded are left out and
    listed in `bad_images`.

    Args:
        path: The folder.
        seed: Chooses the split and the shots.
        validation_percent: How much of what is cut is validation; None for 10.
        shots: Training images of each class, of those that can be decoded; None for all.
    """

    def __init__(self, path, seed=0, validation_percent=None, shots=None):
        self.path = Path(path)
        self.seed, self.shots = seed, shots
        self.bad_images = []  # (path below the folder, reason)
        self._checked = {}
        if not self.path.is_dir():
            raise InputError(f"`folder:PATH` must name a folder. Received: {path}.")
        share = (validation_percent or 10) / 100
        if (self.path / "train").is_dir() and (self.path / "test").is_dir():
            self._read_splits(share)
        elif (self.path / "train").is_dir() and self._validation_folders():
            # Else train and val would be taken for two classes.
            raise InputError(
                "A folder with train/ and validation/ or val/ must have test/ too. "
                f"Received: {path}. Rename or copy a split to test/."
            )
        else:
            self.class_names, files, labels = _list_classes(self.path)
            self._cut(files, labels, {"train": 0.9 - share, "validation": share, "test": 0.1})

    def _validation_folders(self):
        return [name for name in ("validation", "val") if (self.path / name).is_dir()]

    def _read_splits(self, share):
        self.class_names, files, labels = _list_classes(self.path / "train")
        validation = self._validation_folders()
        if validation:
            self.files = {"train": (files, labels)}
        else:
            self._cut(files, labels, {"train": 1 - share, "validation": share})
        for split, folder in [("test", "test")] + [("validation", n) for n in validation[:1]]:
            names, files, labels = _list_classes(self.path / folder)
            unknown = sorted(set(names) - set(self.class_names))
            if unknown:
                raise InputError(
                    f"Every class in {folder}/ must be in train/ too. Received: {unknown[:5]}, "
                    f"which train/ does not have.{nearest(unknown[0], self.class_names)}"
                )
            places = np.array([self.class_names.index(name) for name in names])
            self.files[split] = (files, places[labels])

    def _cut(self, files, labels, fractions):
        parts = stratified_split(self._names(files), labels, fractions, self.seed)
        self.files = {s: ([files[i] for i in part], labels[part]) for s, part in parts.items()}

    def _names(self, files):
        """Returns the paths below the folder."""
        return [Path(file).relative_to(self.path).as_posix() for file in files]

    def check(self, split):
        """Decodes every file of a split once; returns `[(file, reason)]` of those that fail."""
        if split not in self._checked:
            files, labels = self.files[split]
            if not files:
                raise InputError(
                    "A split must have an image. Received: "
                    f"{self.path}, split {split}, with none. Give every class 3 images or more."
                )
            good = np.array(list(_decodable(files)), bool)
            bad = [
                (str(f.relative_to(self.path)), _reason(f))
                for f, ok in zip(files, good, strict=True)
                if not ok
            ]
            if not good.any():
                raise InputError(
                    f"A split must have an image that can be decoded. Received: {self.path}, split "
                    f"{split}, with {len(files)} files, the first of them "
                    f"{bad[0][0]}: {bad[0][1]}."
                )
            kept = [str(f) for f, ok in zip(files, good, strict=True) if ok]
            labels = labels[good]
            if split == "train" and self.shots is not None:
                names = self._names(kept)
                chosen = _choose(names, labels, self.shots, self.seed, self.class_names)
                kept, labels = [kept[i] for i in chosen], labels[chosen]
            self._checked[split] = bad, tf.constant(kept), tf.constant(labels, tf.int64)
            self.bad_images += bad
        return self._checked[split][0]

    def num_examples(self, split):
        """Number of examples of a split that can be decoded."""
        self.check(split)
        return len(self._checked[split][1])

    def fingerprint(self):
        """Returns a dict of strings and numbers: a hash of names and labels, split sizes."""
        sizes = {split: self.num_examples(split) for split in SPLITS}
        digest = hashlib.sha256()
        for split in SPLITS:
            _, files, labels = self._checked[split]
            for file, label in zip(files.numpy(), labels.numpy(), strict=True):
                name = Path(file.decode()).relative_to(self.path).as_posix()
                digest.update(f"{split}\0{name}\0{label}\n".encode())
        return {**sizes, "files_sha256": digest.hexdigest()[:16]}

    def examples(self, split, shuffle_seed=None, first=0):
        """Returns the examples, in a random order if a seed is given.

        Args:
            split: train, validation or test.
            shuffle_seed: Integer or scalar int64 tensor; the same seed, the same order.
            first: Examples to leave out in front, in that order; they are not read.
        """
        self.check(split)
        _, files, labels = self._checked[split]
        listed = {"file": files, "label": labels}
        if shuffle_seed is None:
            data = tf.data.Dataset.from_tensor_slices(listed)
        else:
            data = _shuffled(listed, shuffle_seed)
        return data.skip(first).map(
            lambda x: {"image_bytes": tf.io.read_file(x["file"]), "label": x["label"]},
            num_parallel_calls=tf.data.AUTOTUNE,
        )


def _choose(names, labels, shots, seed, class_names):
    """Returns the sorted places of the shots.

    Raises:
        InputError: If a class has fewer.
    """
    found = few_shots(names, labels, shots, seed)
    for label, name in enumerate(class_names):
        if len(found.get(label, ())) < shots:
            raise InputError(
                "Every class must have `shots` training images. "
                f"Received: shots={shots}, class {name} with {len(found.get(label, ()))}."
            )
    return np.sort(np.concatenate(list(found.values())))


def _at(data, places):
    """Returns the examples at these sorted places of a data set."""
    places = tf.constant(places)

    def among(place, _):
        return tf.reduce_any(places[tf.searchsorted(places, [place])[0] :][:1] == place)

    return data.enumerate().filter(among).map(lambda _, example: example)


def _shuffled(columns, seed):
    """Returns the rows of equally long columns in an order that only the seed decides."""
    order = tf.range(tf.shape(columns["label"])[0])
    order = tf.random.experimental.stateless_shuffle(order, tf.stack([tf.cast(seed, tf.int64), 0]))
    return tf.data.Dataset.from_tensor_slices({k: tf.gather(v, order) for k, v in columns.items()})


def _list_classes(folder):
    """Returns class names, files and the label of each file."""
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise InputError(
            "A folder of images must hold one sub-folder per class. "
            f"Received: {folder}, which has no sub-folder."
        )
    files, labels = [], []
    for label, name in enumerate(names):
        found = sorted(p for p in (folder / name).rglob("*") if p.suffix.lower() in SUFFIXES)
        if not found:
            raise InputError(
                f"Every class folder must hold {', '.join(SUFFIXES)} files. "
                f"Received: {folder / name}, which has none. Add images or remove the folder."
            )
        files += found
        labels += [label] * len(found)
    return names, files, np.array(labels)


def _decodable(files):
    """Yields for each file whether TensorFlow decodes it."""

    def size(file):
        return tf.size(decode_image(tf.io.read_file(file)))

    whole = tf.data.Dataset.from_tensor_slices([str(file) for file in files])
    # An example that fails would vanish: numbered, those that are left tell which did.
    numbered = whole.enumerate().map(lambda i, f: (i, size(f)), num_parallel_calls=tf.data.AUTOTUNE)
    kept = {int(i) for i, _ in numbered.ignore_errors().as_numpy_iterator()}
    return (i in kept for i in range(len(files)))


def _reason(file):
    if file.stat().st_size == 0:
        return "the file is empty"
    try:
        decode_image(tf.io.read_file(str(file)))
    except tf.errors.OpError as error:
        found = re.search(r"Summarized data: b'(.*?)'\s+(\d+)", error.message)  # of an Assert
        if found:
            return f"{found[1]} {int(found[2]):,}"
        text = error.message.splitlines()[0]
        return re.sub(r"\{\{.*?\}\}", "", text).partition(" [Op:")[0].strip()[:120]
    return "it failed once and was then decoded"
