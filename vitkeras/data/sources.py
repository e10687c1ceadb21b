"""Opens the data source that a config names."""

from typing import cast

from vitkeras.arguments import check_int, check_range
from vitkeras.data.cache import CachedSource, parse_cache
from vitkeras.data.examples import Source
from vitkeras.data.folder import FolderSource
from vitkeras.data.tfds import TFDSSource


def open_source(
    dataset: str,
    data_dir: str | None = None,
    seed: int = 0,
    validation_percent: float | None = None,
    shots: int | None = None,
    cache: str = "auto",
    sample: int | None = None,
) -> Source:
    """Returns a data source with a cache.

    Args:
        dataset: "digits", a name of TensorFlow Datasets, or "folder:PATH".
        data_dir: Directory of TensorFlow Datasets; None for its default.
        seed: Selects the shots, and the split of a folder without train/ and test/.
        validation_percent: Percentage of the validation split where the data set has none; None
            for the default of the source.
        shots: Number of training examples per class; None for all.
        cache: "memory", "disk:FOLDER" (TFRecord files), "none", or "auto": in memory if a split of
            TensorFlow Datasets has at most 10,000 examples.
        sample: Number of files of each split of a folder that are decoded for validation; None for
            all.
    Raises:
        InputError: If an argument is out of range, or the data set is unknown or unsuitable.
    """
    if validation_percent is not None:
        # The test split is 10 %, so train gets the rest.
        valid = 0 < validation_percent < 90
        check_range("validation_percent", validation_percent, valid, "above 0 and below 90")
    if shots is not None:
        check_int("shots", shots)
    kind, folder = parse_cache(cache)
    prefix, _, path = dataset.partition(":")
    source: Source
    if prefix == "folder" and path:
        source = FolderSource(path, seed, validation_percent, shots, sample)
    else:
        source = TFDSSource(dataset, data_dir, seed, validation_percent, shots)
    return cast(Source, CachedSource(source, kind, folder))
