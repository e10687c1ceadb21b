"""A data set of TensorFlow Datasets as a source."""

import contextlib
import hashlib
import itertools
import sys

import tensorflow_datasets as tfds

from vitkeras.data.splits import SPLITS, choose_shots
from vitkeras.data.stored import Records, in_memory
from vitkeras.errors import InputError, nearest

#: Labels of each split that are looked at before anything is trained.
LABELS = 1_000


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
        self.bad_images = []  # there is no file to name: what cannot be decoded stops a run
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
        for split in SPLITS:
            self._check_labels(split)
        self.chosen = None  # the places in train of the shots
        if shots is not None:
            labels = self.labels("train")
            names = map(str, itertools.count())
            self.chosen = choose_shots(names, labels, shots, seed, self.class_names)

    def _splits(self, percent):
        have = set(self.builder.info.splits)
        if "train" not in have:
            raise InputError(f"A data set must have a train split. Received: {sorted(have)}.")
        if "test" in have and next(self._labels_of("test"), 0) < 0:  # as ImageNet's, kept secret
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

    def _check_labels(self, split):
        for place, label in enumerate(itertools.islice(self.labels(split), LABELS)):
            if not 0 <= label < len(self.class_names):
                raise InputError(
                    f"A label must be an integer from 0 to {len(self.class_names) - 1}, one for "
                    f"each class. Received: {self.builder.info.full_name}, split {split}, example "
                    f"{place} with label {label}."
                )

    def _records(self, instruction, features):
        """Returns the stored examples of a split in TFDS's words, with some of their features."""
        if self.builder.info.file_format is not tfds.core.FileFormat.TFRECORD:
            raise InputError(
                "A data set must be stored as TFRecord files. Received: "
                f"{self.builder.info.full_name}, stored as {self.builder.info.file_format.value}."
            )
        wanted = tfds.decode.PartialDecoding(
            dict.fromkeys(features, True),
            {"image": tfds.decode.SkipDecoding()} if "image" in features else {},
        )
        kinds = wanted.extract_features(self.builder.info.features)

        def parse(record):
            found = kinds.deserialize_example(record, decoders=wanted.decoders)
            return {"image_bytes" if k == "image" else k: v for k, v in found.items()}

        files = self.builder.info.splits[instruction].file_instructions
        return Records([(f.filename, f.skip, f.take) for f in files], parse)

    def _labels_of(self, instruction):
        data = self._records(instruction, ["label"]).in_order()
        return (int(example["label"]) for example in data.as_numpy_iterator())

    def labels(self, split):
        """Yields the labels of all examples of a split; no image is decoded."""
        return self._labels_of(self.splits[split])

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

    def version(self, split):
        """Returns a string that is another one when the examples of the split are."""
        return repr((self.fingerprint(), self.splits[split], str(self.builder.data_path)))

    def stored(self, split):
        """Returns the examples of a split: records in files, or the chosen ones in memory.

        Args:
            split: train, validation or test.
        """
        records = self._records(self.splits[split], ["image", "label"])
        if split == "train" and self.chosen is not None:
            return in_memory(records, self.chosen)
        return records
