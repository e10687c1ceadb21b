import types

import keras
import numpy as np
import pytest

from vitkeras.errors import InputError
from vitkeras.training.early_stopping import EarlyStopping


def epoch_of_keras(values, patience, mode):
    """Returns the epoch after which Keras's callback ends `fit`; None if it does not."""
    callback = keras.callbacks.EarlyStopping("value", 0, patience, mode=mode)
    callback.set_model(types.SimpleNamespace(stop_training=False))
    callback.on_train_begin()
    for epoch, value in enumerate(values, 1):
        callback.on_epoch_end(epoch, {"value": value})
        if callback.model.stop_training:
            return epoch
    return None


@pytest.mark.parametrize("metric, mode", [("loss", "min"), ("accuracy", "max")])
@pytest.mark.parametrize("patience", [1, 2, 4])
def test_a_run_ends_when_that_of_keras_does(metric, mode, patience):
    rng, found = np.random.default_rng(0), set()
    for _ in range(50):
        values = rng.integers(0, 9, 12) / 9  # with ties
        rows = [{"epoch": i, f"val_{metric}": value} for i, value in enumerate(values, 1)]
        criterion = EarlyStopping(patience, metric)
        reached = [n for n in range(13) if criterion.is_reached(rows[:n])]
        expected = epoch_of_keras(values, patience, mode)
        assert (reached or [None])[0] == expected
        found.add(expected)
    assert len(found) > 3


def test_epochs_without_an_evaluation_do_not_count_and_nan_is_no_improvement():
    values = [0.5, None, 0.3, None, float("nan"), None, 0.4]
    rows = [
        {"epoch": i, "loss": 0.1} | ({} if value is None else {"val_loss": value})
        for i, value in enumerate(values, 1)
    ]
    criterion = EarlyStopping(2)
    assert [criterion.is_reached(rows[:n]) for n in range(8)] == [False] * 7 + [True]
    text = criterion.describe(rows)
    assert "after epoch 7: val_loss has not improved in 2 evaluations since epoch 3 (0.3" in text
    assert EarlyStopping(1).is_reached([{"epoch": i, "val_loss": float("nan")} for i in (1, 2)])


def test_invalid_arguments():
    with pytest.raises(InputError, match="early_stopping=0"):
        EarlyStopping(0)
    with pytest.raises(InputError, match="early_stopping_metric='f1'"):
        EarlyStopping(3, "f1")
