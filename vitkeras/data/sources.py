"""Where examples come from: TensorFlow Datasets, the embedded digits, or a folder of images.

Splits are always called train, validation and test, and an example is
`{"image_bytes": string, "label": int64}`. `fingerprint()` tells one data set from another.
"""

from vitkeras.data.caching import CachedSource, parse_cache
from vitkeras.data.folder import FolderSource
from vitkeras.data.tfds import TFDSSource
from vitkeras.errors import check_range


def open_source(
    dataset,
    data_dir=None,
    seed=0,
    validation_percent=None,
    shots=None,
    cache="auto",
    say=None,
    sample=None,
):
    """Returns the source that a config's `dataset` names.

    It has `class_names`, `bad_images`, `num_examples(split)`, `fingerprint()` and `stored(split)`,
    which the batches are made of.

    Args:
        dataset: "digits", any name of TensorFlow Datasets, or "folder:PATH".
        data_dir: Where TensorFlow Datasets keeps its files; None for its default.
        seed: Chooses the split of a folder that has no split of its own, and the shots.
        validation_percent: How much of train is validation where the data set has none; None for
            what the source says.
        shots: Training examples of each class; None for all.
        cache: Where encoded images are kept once they were read: "memory", "disk:FOLDER" (as
            TFRecord files), "none", or "auto", in memory if a split of TensorFlow Datasets has no
            more than 10,000.
        say: Takes lines that tell how far reading or writing is; None for none.
        sample: Files of each split of a folder that are decoded beforehand; the others are taken
            for good ones. None for all.
    Raises:
        InputError: If there is no such data set or folder, or it does not have what is needed.
    """
    if validation_percent is not None:
        fits = 0 < validation_percent < 90  # with the 10 % of a test split, there is a rest
        check_range("validation_percent", validation_percent, fits, "above 0 and below 90")
    if shots is not None:
        check_range("shots", shots, shots >= 1, "at least 1")
    place = parse_cache(cache)
    kind, _, path = dataset.partition(":")
    if kind == "folder" and path:
        source = FolderSource(path, seed, validation_percent, shots, say, sample)
    else:
        source = TFDSSource(dataset, data_dir, seed, validation_percent, shots)
    return CachedSource(source, *place, say)
