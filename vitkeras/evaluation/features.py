"""Features of every image of a source, computed once and cached on disk.

The features of an image are the input of the layer `head`. They depend on the content of its file,
the preprocessing and the weights of the backbone; the cache is found by hashes of these, so data
may be moved, split in another way or extended.
"""

import contextlib
import hashlib
import io
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, cast

import keras
import numpy as np
import tensorflow as tf
from absl import logging
from etils import epath

from vitkeras.data.examples import Source
from vitkeras.data.pipeline import evaluation_batches
from vitkeras.data.preprocessing import Preprocessing
from vitkeras.data.sharding import HostShard
from vitkeras.data.splits import SPLITS
from vitkeras.errors import InputError
from vitkeras.io.atomic import atomic_file, remove_stale_staging
from vitkeras.io.locks import exclusive_lock
from vitkeras.io.progress import Progress
from vitkeras.models.config import config_to_dict, model_config

#: Version of the cache: a new one is needed when the same file gives other features.
CACHE_VERSION = 1
#: Maximum number of images in a file of the cache.
IMAGES_PER_SHARD = 256
#: Bytes of the hash of an image file.
DIGEST_SIZE = 16


class SplitFeatures(NamedTuple):
    """Features of a split, in the order of its examples.

    Attributes:
        values: float32 `(n, d)`.
        labels: int64 `(n,)`.
    """

    values: np.ndarray
    labels: np.ndarray


def backbone_key(model: keras.Model, preprocessing: Preprocessing) -> str:
    """Returns a hash of all that features depend on besides the image.

    Args:
        model: A model of this package with a layer `head`.
        preprocessing: Preprocessing of the run.
    """
    architecture = config_to_dict(model_config(model)) | {"num_classes": None}
    description = [CACHE_VERSION, architecture, preprocessing.to_json()]
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for weight in model.weights:
        if not weight.path.startswith("head/"):
            value = np.ascontiguousarray(keras.ops.convert_to_numpy(weight))
            digest.update(f"{weight.path} {value.dtype} {value.shape}".encode())
            digest.update(value.tobytes())
    return digest.hexdigest()[:32]


class FeatureCache:
    """Features on disk, by the hash of the image file.

    A shard is an .npz file, which has checksums, with the features of at most `IMAGES_PER_SHARD`
    images. It is written atomically; a damaged one is removed.

    Args:
        folder: Directory of the cache, which runs may share. Created if it does not exist.
        key: Result of `backbone_key`.
    Raises:
        InputError: If the directory cannot be created.
    """

    def __init__(self, folder: epath.PathLike, key: str):
        self.path = epath.Path(folder) / key
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                "The folder of the feature cache must be one that can be created. "
                f"Received: {folder} ({error.strerror})."
            ) from error

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Waits for other processes that use the directory, and removes what killed ones left."""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(exclusive_lock(self.path))
            except InputError:
                logging.info("Waiting for another process that uses %s.", self.path)
                stack.enter_context(exclusive_lock(self.path, timeout=-1))
            remove_stale_staging(self.path)
            yield

    def read(self, digests: set[bytes]) -> dict[bytes, np.ndarray]:
        """Returns the features, float32 `(d,)`, of those of the images that are cached."""
        found: dict[bytes, np.ndarray] = {}
        for path in sorted(self.path.glob("*.npz")):
            content = path.read_bytes()
            try:
                with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                    keys, values = arrays["digests"], arrays["features"]
                rows = dict(zip(map(bytes, keys), values, strict=True))
            except Exception as error:  # whatever zipfile or NumPy raise for a damaged file
                logging.warning(
                    "A damaged file of cached features is removed: %s (%s).", path, error
                )
                path.unlink(missing_ok=True)
                continue
            found |= {digest: row for digest, row in rows.items() if digest in digests}
        return found

    def write(self, digests: list[bytes], values: np.ndarray) -> None:
        """Adds a shard.

        Args:
            digests: Hashes of image files.
            values: Their features, float32 `(n, d)`.
        """
        keys = np.array([list(digest) for digest in digests], np.uint8)
        name = hashlib.sha256(keys.tobytes()).hexdigest()[:32]
        with atomic_file(self.path / f"{name}.npz") as path:
            np.savez(path, digests=keys, features=values)


class _SelectedExamples:
    """A source for `evaluation_batches` with one split: some of the examples of each split.

    Args:
        source: The source.
        indices: From split to sorted indices.
    """

    def __init__(self, source: Source, indices: Mapping[str, np.ndarray]):
        self._source = source
        self._indices = {split: each for split, each in indices.items() if len(each)}
        self.class_names = source.class_names

    def num_examples(self, split: str) -> int:
        """Returns the number of examples."""
        return sum(map(len, self._indices.values()))

    def examples(self, split: str) -> "_SelectedExamples":
        """Returns itself."""
        return self

    def in_order(self, shard: HostShard) -> tf.data.Dataset:
        """Returns the examples that a host reads."""
        first, *others = (
            self._source.examples(split).at(indices) for split, indices in self._indices.items()
        )
        for other in others:
            first = first.concatenate(other)
        return shard.filter(first)


def extract_features(
    source: Source,
    preprocessing: Preprocessing,
    forward: Callable[[tf.Tensor], tf.Tensor],
    batch_size: int,
    cache: FeatureCache,
) -> dict[str, SplitFeatures]:
    """Returns the features of all splits. Call this in the scope of a strategy with one host.

    Images that are not in the cache are computed, each content once, and added to it; what was
    computed before the process is killed is not computed again.

    Args:
        source: The data source.
        preprocessing: Preprocessing of the run.
        forward: From images, uint8 `(b, h, w, 3)`, to features, float32 `(b, d)`.
        batch_size: Maximum global batch size; divisible by the number of replicas.
        cache: The cache for model and preprocessing.
    Raises:
        InputError: If a feature is not finite.
    """
    digests, labels = {}, {}
    for split in SPLITS:
        digests[split], labels[split] = _read_digests(source, split)
    with cache.exclusive():
        rows = cache.read({digest for each in digests.values() for digest in each})
        missing = _first_indices(digests, rows)
        num_missing = sum(map(len, missing.values()))
        logging.info(
            "Features: %d images cached, %d to compute. %s", len(rows), num_missing, cache.path
        )
        if num_missing:
            order = [digests[split][i] for split, indices in missing.items() for i in indices]
            selected = cast(Source, _SelectedExamples(source, missing))
            computed = _compute(selected, preprocessing, forward, batch_size, num_missing)
            for begin in range(0, num_missing, IMAGES_PER_SHARD):
                shard = order[begin : begin + IMAGES_PER_SHARD]
                values = np.stack(list(itertools.islice(computed, len(shard))))
                cache.write(shard, values)
                rows |= zip(shard, values, strict=True)
    return {
        split: SplitFeatures(np.stack([rows[digest] for digest in digests[split]]), labels[split])
        for split in SPLITS
    }


def _read_digests(source, split):
    """Returns the hash of each image file of a split, and the labels."""
    digests, labels = [], []
    for example in source.examples(split).in_order().as_numpy_iterator():
        content = example["image_bytes"]
        digests.append(hashlib.blake2b(content, digest_size=DIGEST_SIZE).digest())
        labels.append(example["label"])
    return digests, np.array(labels, np.int64)


def _first_indices(digests, known):
    """Returns for each split the indices of the images that are the first with their content."""
    seen, found = set(known), {}
    for split, each in digests.items():
        indices = []
        for i, digest in enumerate(each):
            if digest not in seen:
                seen.add(digest)
                indices.append(i)
        found[split] = np.array(indices, np.int64)
    return found


def _compute(source, preprocessing, forward, batch_size, total):
    """Yields the features of each example of a source."""
    strategy = tf.distribute.get_strategy()
    replicas = strategy.num_replicas_in_sync
    batch_size = min(batch_size, -(-total // replicas) * replicas)
    batches = evaluation_batches(source, "all", preprocessing, batch_size)

    @tf.function
    def features_and_weights(batch):
        return strategy.run(lambda images, _, weights: (forward(images), weights), args=batch)

    def concatenate(per_replica):
        values = strategy.experimental_local_results(per_replica)
        return np.concatenate([value.numpy() for value in values])

    with Progress(total, "features") as progress:
        for batch in strategy.experimental_distribute_dataset(batches):
            features, weights = map(concatenate, features_and_weights(batch))
            features = features[weights > 0]
            finite = np.isfinite(features).all(1)
            if not finite.all():
                raise InputError(
                    "The features of an image must be finite. Received: "
                    f"{np.count_nonzero(~finite)} of {len(features)} images with features that are "
                    "not. Check the weights."
                )
            progress.update(len(features))
            yield from features
