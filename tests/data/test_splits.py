import itertools

import numpy as np

from vitkeras import data
from vitkeras.data.splits import few_shot_indices


def test_stratified_split_is_stratified_complete_and_stable():
    labels = np.repeat([0, 1, 2], [50, 30, 4])
    names = [f"file{i}" for i in range(84)]
    fractions = {"train": 0.8, "validation": 0.1, "test": 0.1}
    splits = data.stratified_split(names, labels, fractions)
    assert sorted(np.concatenate(list(splits.values()))) == list(range(84))
    assert np.bincount(labels[splits["test"]]).tolist() == [5, 3, 1]
    assert np.bincount(labels[splits["validation"]]).tolist() == [5, 3, 1]
    other = data.stratified_split(names, labels, fractions, seed=1)
    assert other["test"].tolist() != splits["test"].tolist()
    larger = data.stratified_split([*names, "new"], [*labels, 0], fractions)
    assert len(set(larger["test"]) ^ set(splits["test"])) <= 2


def test_few_shot_indices_are_of_each_class_and_depend_on_the_seed():
    labels = np.random.default_rng(0).integers(0, 4, 200).tolist()
    selected = few_shot_indices(map(str, itertools.count()), iter(labels), 5)
    counts = {label: len(indices) for label, indices in selected.items()}
    assert counts == dict.fromkeys(range(4), 5)
    for label, indices in selected.items():
        assert indices == sorted(indices) and all(labels[i] == label for i in indices)
    names = [str(i) for i in range(200)]
    assert few_shot_indices(names, labels, 5) == selected
    assert few_shot_indices(names, labels, 5, seed=1) != selected
    more = few_shot_indices(names, labels, 6)
    assert all(set(selected[label]) < set(more[label]) for label in selected)
    assert few_shot_indices(["a", "b", "c"], [0, 0, 1], 2) == {0: [0, 1], 1: [2]}
