"""The data set digits: 1,797 scanned digits of 8x8 pixels that scikit-learn includes."""

import numpy as np
import tensorflow_datasets as tfds

from vitkeras.data.splits import stratified_split

FRACTIONS = {"train": 0.8, "validation": 0.1, "test": 0.1}


class Digits(tfds.core.GeneratorBasedBuilder):
    """scikit-learn's copy of the UCI "Optical Recognition of Handwritten Digits" test set.

    Values 0 to 16 become 0 to 255. Written as TFRecords of PNGs on first use.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}
    pkg_dir_path = None

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=[str(digit) for digit in range(10)]),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
        )

    def _split_generators(self, dl_manager):
        from sklearn.datasets import load_digits

        bunch = load_digits()
        images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]  # (1797, 8, 8, 1)
        names = [f"{i:04d}" for i in range(len(images))]
        splits = stratified_split(names, bunch.target, FRACTIONS)
        return {
            split: self._generate_examples(images[indices], bunch.target[indices], indices)
            for split, indices in splits.items()
        }

    def _generate_examples(self, images, labels, indices):
        for image, label, index in zip(images, labels, indices, strict=True):
            yield int(index), {"image": image, "label": int(label)}
