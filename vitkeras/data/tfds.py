"""A data source that reads TensorFlow Datasets."""

import contextlib
import hashlib
import itertools
import os
import sys
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from vitkeras.arguments import did_you_mean
from vitkeras.data.examples import Examples, TFRecordExamples, read_into_memory
from vitkeras.data.splits import SPLITS, select_shots
from vitkeras.errors import InputError

#: Number of labels of each split that are checked before training.
NUM_CHECKED_LABELS = 1_000


class TFDSSource:
    """A data set of TensorFlow Datasets, downloaded and prepared on first use.

    It needs the features `image` and `label`. A missing validation split is the last 10 % of train
    (1 % from 100,000 examples on, as in the paper for ImageNet). If there is no test split with
    labels, the test split is the validation split, and a validation split is taken from train.

    Args:
        name: "digits", or a name that `tfds.builder` accepts.
        data_dir: Directory of TensorFlow Datasets; None for its default.
        seed: Selects the shots.
        validation_percent: Percentage of train that is the validation split where there is none;
            None for the default above.
        shots: Number of training examples per class, selected by their index in train; None for
            all.
    Raises:
        InputError: If the data set is unknown, cannot be prepared, or has unsuitable features.
    """

    def __init__(
        self,
        name: str,
        data_dir: str | None = None,
        seed: int = 0,
        validation_percent: float | None = None,
        shots: int | None = None,
    ):
        # Records have no path: one that cannot be decoded stops the run.
        self.bad_images: list[tuple[str, str]] = []
        self.other_files: list[str] = []
        self.builder = _builder(name, data_dir)
        features = self.builder.info.features
        if not {"image", "label"} <= set(features or ()):
            raise InputError(
                "`dataset` must have the features image and label. "
                f"Received: dataset={name!r} with {sorted(features or ())}."
            )
        image, label = features["image"], features["label"]
        if not isinstance(image, tfds.features.Image) or not hasattr(label, "names"):
            raise InputError(
                "`dataset` must have an Image feature image and a ClassLabel feature label. "
                f"Received: dataset={name!r} with {type(image).__name__} and "
                f"{type(label).__name__}."
            )
        try:
            with contextlib.redirect_stdout(sys.stderr):
                self.builder.download_and_prepare()
        # A missing manual download is an AssertionError.
        except (AssertionError, OSError, tfds.download.DownloadError) as error:
            raise InputError(
                "`dataset` must be prepared or downloadable. Received: "
                f"dataset={name!r}, data_dir={data_dir!r}: {error}"
            ) from error
        self.class_names = list(features["label"].names)
        self.splits = self._splits(validation_percent)
        for split in SPLITS:
            self._check_labels(split)
        self.shot_indices = None  # in train
        if shots is not None:
            names = map(str, itertools.count())
            self.shot_indices = select_shots(
                names, self.labels("train"), shots, seed, self.class_names
            )

    def _splits(self, percent):
        """Returns the TFDS split instruction of each split."""
        info = self.builder.info.splits
        available = set(info)
        if "train" not in available:
            raise InputError(f"`dataset` must have a train split. Received: {sorted(available)}.")
        if "test" in available and next(self._read_labels("test"), 0) < 0:
            available.remove("test")  # labels are not published, as those of ImageNet
        if {"validation", "test"} <= available:
            return {split: split for split in SPLITS}
        percent = percent or (1 if info["train"].num_examples >= 100_000 else 10)
        test = [split for split in ("test", "validation") if split in available]
        end = 100 if test else 90
        return {
            "train": f"train[:{end - percent}%]",
            "validation": f"train[{end - percent}%:{end}%]",
            "test": test[0] if test else "train[90%:]",
        }

    def _check_labels(self, split):
        for index, label in enumerate(itertools.islice(self.labels(split), NUM_CHECKED_LABELS)):
            if not 0 <= label < len(self.class_names):
                raise InputError(
                    f"A label must be an integer from 0 to {len(self.class_names) - 1}. "
                    f"Received: {self.builder.info.full_name}, split {split}, example {index} "
                    f"with label {label}."
                )

    def _records(self, instruction, features):
        """Returns the examples of a TFDS split instruction, with some of their features."""
        if self.builder.info.file_format is not tfds.core.FileFormat.TFRECORD:
            raise InputError(
                "`dataset` must be stored as TFRecord files. Received: "
                f"{self.builder.info.full_name}, stored as {self.builder.info.file_format.value}."
            )
        decoding = tfds.decode.PartialDecoding(
            dict.fromkeys(features, True),
            {"image": tfds.decode.SkipDecoding()} if "image" in features else {},
        )
        partial_features = decoding.extract_features(self.builder.info.features)

        def parse(record):
            example = partial_features.deserialize_example(record, decoders=decoding.decoders)
            return {"image_bytes" if k == "image" else k: v for k, v in example.items()}

        files = self.builder.info.splits[instruction].file_instructions
        return TFRecordExamples([(f.filename, f.skip, f.take) for f in files], parse)

    def _read_labels(self, instruction):
        batches = self._records(instruction, ["label"]).in_order().batch(NUM_CHECKED_LABELS)
        return (label for batch in batches.as_numpy_iterator() for label in batch["label"].tolist())

    def labels(self, split: str) -> Iterator[int]:
        """Yields the labels of a split; those of all of train even if `shots` is given."""
        return self._read_labels(self.splits[split])

    def num_examples(self, split: str) -> int:
        """Returns the number of examples of a split."""
        if split == "train" and self.shot_indices is not None:
            return len(self.shot_indices)
        return self.builder.info.splits[self.splits[split]].num_examples

    def num_listed(self, split: str) -> int:
        """Returns the same as `num_examples`."""
        return self.num_examples(split)

    def example_paths(self, split: str) -> None:
        """Returns None: the images are records of larger files."""
        return None

    def fingerprint(self) -> dict[str, Any]:
        """Returns name, version, sizes of the splits and a hash of the shots."""
        fingerprint = {"name": self.builder.info.full_name}
        fingerprint |= {split: self.num_examples(split) for split in SPLITS}
        if self.shot_indices is not None:
            digest = hashlib.sha256(self.shot_indices.tobytes())
            fingerprint["shots_sha256"] = digest.hexdigest()[:16]
        return fingerprint

    def version(self, split: str) -> str:
        """Returns a string that changes when the examples of a split change."""
        return repr((self.fingerprint(), self.splits[split], str(self.builder.data_path)))

    def examples(self, split: str) -> Examples:
        """Returns the examples of a split: records in files, or the shots in memory."""
        records = self._records(self.splits[split], ["image", "label"])
        if split == "train" and self.shot_indices is not None:
            return read_into_memory(records, self.shot_indices)
        return records


def _builder(name, data_dir):
    if name == "digits":
        from vitkeras.data.digits import Digits

        tfds.disable_progress_bar()  # preparing takes a second
        return Digits(data_dir=data_dir)
    try:
        return tfds.builder(name, data_dir=data_dir)
    # An unknown version is an AssertionError.
    except (tfds.core.DatasetNotFoundError, ValueError, AssertionError) as error:
        if os.path.isdir(name):
            hint = f' Did you mean "folder:{name}"?'
        else:
            names = ["digits", *tfds.list_builders(with_community_datasets=False)]
            hint = did_you_mean(name, names)
        raise InputError(
            "`dataset` must be digits, a name of TensorFlow Datasets, or folder:PATH. "
            f"Received: dataset={name!r}.{hint}"
        ) from error
