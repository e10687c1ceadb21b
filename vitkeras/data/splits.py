"""Stratified splits and few-shot subsets that are the same on every machine."""

import collections
import hashlib
import heapq
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from vitkeras.errors import InputError

SPLITS = ("train", "validation", "test")


def stratified_split(
    names: Sequence[str], labels: Sequence[int], fractions: Mapping[str, float], seed: int = 0
) -> dict[str, np.ndarray]:
    """Splits examples so that each class has the same fraction in each split.

    Within a class, examples are ordered by the SHA-256 of seed and name, so that a new file changes
    the split of few others.

    Args:
        names: A unique name for each example.
        labels: An integer for each example.
        fractions: From split to its fraction. The fractions sum to 1. The first split gets the
            examples that rounding leaves. A class with enough examples has at least one in each
            split.
        seed: Selects one of the possible splits.
    Returns:
        From split to the sorted indices of its examples.
    """
    label_array = np.asarray(labels)
    keys = [_key(seed, name) for name in names]
    first, *others = fractions
    splits: dict[str, list[int]] = {split: [] for split in fractions}
    for label in np.unique(label_array):
        indices = sorted(np.flatnonzero(label_array == label).tolist(), key=lambda i: keys[i])
        size = len(indices)
        for split in others:
            count = round(fractions[split] * size)
            if size >= len(fractions):
                count = max(count, 1)
            splits[split] += indices[:count]
            indices = indices[count:]
        splits[first] += indices
    return {split: np.sort(np.array(indices, np.int64)) for split, indices in splits.items()}


def few_shot_indices(
    names: Iterable[str], labels: Iterable[int], shots: int, seed: int = 0
) -> dict[int, list[int]]:
    """Selects the examples of each class with the smallest SHA-256 of seed and name.

    Args:
        names: A unique name for each example; may be longer than `labels`.
        labels: An integer for each example. Both are iterated once; memory holds only the
            candidates.
        shots: Number of examples per class; of a class with fewer, all are selected.
        seed: Selects one of the possible subsets.
    Returns:
        From label to the sorted indices of its examples.
    """
    heaps: dict[int, list[tuple[int, int]]] = collections.defaultdict(list)
    for i, (name, label) in enumerate(zip(names, labels, strict=False)):
        heap, item = heaps[label], (-int.from_bytes(_key(seed, name)), i)
        if len(heap) < shots:
            heapq.heappush(heap, item)
        else:
            heapq.heappushpop(heap, item)
    return {label: sorted(i for _, i in heap) for label, heap in heaps.items()}


def select_shots(
    names: Iterable[str],
    labels: Iterable[int],
    shots: int,
    seed: int,
    class_names: Sequence[str],
) -> np.ndarray:
    """Returns the sorted indices of all examples that `few_shot_indices` selects.

    Raises:
        InputError: If a class has fewer than `shots` examples.
    """
    selected = few_shot_indices(names, labels, shots, seed)
    for label, name in enumerate(class_names):
        count = len(selected.get(label, ()))
        if count < shots:
            raise InputError(
                "`shots` must be at most the number of training images of every class. "
                f"Received: shots={shots}, class {name} with {count}."
            )
    return np.sort(np.concatenate(list(selected.values())))


def _key(seed, name):
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()
