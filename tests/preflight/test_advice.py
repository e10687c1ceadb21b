import numpy as np

from vitkeras.preflight.advice import advise_on_classes, advise_on_run

NAMES = ["ant", "bee", "cow", "dog"]


def test_classes_with_few_images_are_listed():
    (sentence,) = advise_on_classes(np.array([19, 20, 3, 0]), NAMES, True)
    assert "2 of 4 classes have fewer than 20 training images: cow (3), ant (19)." in sentence
    assert not advise_on_classes(np.array([19, 20, 3, 0]), NAMES, True, is_sample=True)
    (sentence,) = advise_on_classes(np.arange(1, 10), [f"c{i}" for i in range(9)], True)
    assert "c4 (5) and 4 more" in sentence


def test_skewed_classes_can_be_weighted():
    assert not advise_on_classes(np.array([20, 200, 50, 0]), NAMES, False)
    (sentence,) = advise_on_classes(np.array([20, 2010, 50, 0]), NAMES, False)
    assert "100 times" in sentence and "bee 2,010, ant 20" in sentence
    assert "--config.class_weights=balanced" in sentence
    assert not advise_on_classes(np.array([20, 2010, 50, 0]), NAMES, True)
    assert not advise_on_classes(np.zeros(4, int), NAMES, False)


def test_short_epochs_and_random_weights():
    assert not advise_on_run(320, 32, 160_000, False) and not advise_on_run(9, 9, 4_500, False)
    (sentence,) = advise_on_run(319, 32, 10_000_000, True)
    assert "9 steps" in sentence and "--config.batch_size=31, gives 10" in sentence
    assert "--config.batch_size=1, gives 19" in advise_on_run(19, 4, 1, True)[0]
    (sentence,) = advise_on_run(320, 32, 160_001, False)
    assert "160,001 parameters" in sentence and "320 images" in sentence
    assert "--config.init_from=FILE" in sentence
