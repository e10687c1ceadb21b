"""Stratified splits and few shots that do not depend on the machine."""

import collections
import hashlib
import heapq

import numpy as np

from vitkeras.errors import InputError

SPLITS = ("train", "validation", "test")


def stratified_split(names, labels, fractions, seed=0):
    """Splits examples so that each class has the same share in each split.

    Inside a class examples are ordered by the SHA-256 of seed and name, so that adding a file
    moves hardly any other.

    Args:
        names: A unique string for each example.
        labels: An integer for each example.
        fractions: Dict from split to its share; the shares sum to 1. The first split takes what
            rounding leaves; a class with enough examples has at least one in each split.
        seed: Chooses among splits.
    Returns:
        Dict from split to a sorted array of indices.
    """
    labels = np.asarray(labels)
    keys = [_key(seed, name) for name in names]
    first, *others = fractions
    parts = {split: [] for split in fractions}
    for label in np.unique(labels):
        members = sorted(np.flatnonzero(labels == label), key=lambda i: keys[i])
        for split in others:
            count = round(fractions[split] * np.sum(labels == label))
            if np.sum(labels == label) >= len(fractions):
                count = max(count, 1)
            parts[split] += members[:count]
            members = members[count:]
        parts[first] += members
    return {split: np.sort(np.array(indices, np.int64)) for split, indices in parts.items()}


def few_shots(names, labels, shots, seed=0):
    """Chooses examples of each class: those whose SHA-256 of seed and name is least.

    Args:
        names: A unique string for each example; more of them do no harm.
        labels: An integer for each example. Both are gone through once; of the examples only those
            that may still be chosen are held.
        shots: Examples of each class; a class with fewer has all.
        seed: Chooses among examples.
    Returns:
        Dict from label to a sorted list of indices.
    """
    heaps = collections.defaultdict(list)
    for i, (name, label) in enumerate(zip(names, labels, strict=False)):
        heap, place = heaps[label], (-int.from_bytes(_key(seed, name)), i)
        if len(heap) < shots:
            heapq.heappush(heap, place)
        else:
            heapq.heappushpop(heap, place)
    return {label: sorted(i for _, i in heap) for label, heap in heaps.items()}


def choose_shots(names, labels, shots, seed, class_names):
    """Returns the sorted places of `few_shots`.

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


def _key(seed, name):
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()
