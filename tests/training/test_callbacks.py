import io
import logging
import sys

import keras
import numpy as np
import pytest
from helpers.training import IMAGES, LABELS, compiled_model

from vitkeras.errors import RunError
from vitkeras.io.run_directory import RunDirectory
from vitkeras.training import callbacks


def test_moving_average_is_saved_and_trained_weights_are_not_modified(tmp_path):
    model = compiled_model(ema_momentum=0.5)
    clone = model.from_config(model.get_config())
    run = RunDirectory(tmp_path / "run")
    run.create({"a": 1}, ["x", "y", "z"], {}, {})
    seen = []
    saver = callbacks.ModelSaver(run, clone, lambda: {"accuracy": len(seen) // 7, "loss": 0.5})

    def record(*_, **__):
        seen.append([v.numpy() for v in model.trainable_variables])

    track = keras.callbacks.LambdaCallback(on_train_batch_end=record)
    after_save = keras.callbacks.LambdaCallback(on_epoch_end=record)
    model.fit(
        IMAGES, LABELS, batch_size=4, epochs=2, shuffle=False, verbose=0,
        callbacks=[track, saver, after_save],
    )  # fmt: skip
    for step, saved in ((2, 3), (6, 7)):
        for variable, expected in zip(seen[saved], seen[step], strict=True):
            np.testing.assert_array_equal(variable, expected)
    del seen[7], seen[3]
    averages = seen[0]
    for weights in seen[1:]:
        averages = [0.5 * a + 0.5 * w for a, w in zip(averages, weights, strict=True)]
    last = run.load_model("last")
    for variable, expected in zip(last.trainable_variables, averages, strict=True):
        np.testing.assert_allclose(variable, expected, atol=1e-6)
    assert not np.array_equal(last.trainable_variables[0], seen[-1][0])
    assert saver.best == [1, -0.5]


def fit_with_progress():
    counter = callbacks.StepCounter(epochs=2, steps_per_epoch=3)
    progress = callbacks.ProgressBar(counter, batch_size=4)
    compiled_model().fit(
        IMAGES, LABELS, batch_size=4, epochs=2, verbose=0, callbacks=[counter, progress]
    )


def test_progress_is_logged_once_per_epoch(caplog, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with caplog.at_level(logging.INFO, "absl"):
        fit_with_progress()
    first, second = caplog.messages
    assert first.startswith("epoch 1/2 step 3/3, ") and "images/s" in first and "left" in first
    assert second.startswith("epoch 2/2 step 3/3, ") and second.endswith("0:00:00 left")
    assert "loss" in second and "accuracy" in second
    assert "\r" not in sys.stderr.getvalue()


def test_progress_is_a_bar_on_a_terminal(caplog, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    with caplog.at_level(logging.INFO, "absl"):
        fit_with_progress()
    *lines, rest = (line.split("\r")[-1] for line in terminal.getvalue().split("\n"))
    assert [line[:18] for line in lines] == ["epoch 1/2 step 3/3", "epoch 2/2 step 3/3"]
    assert "images/s, 0:00:00 left |" in lines[-1] and not rest and not caplog.messages


@pytest.mark.parametrize("steps_per_execution, where", [(1, "step 2"), (2, "one of steps 1 to 2")])
def test_loss_that_is_not_finite_names_the_step(steps_per_execution, where):
    counter = callbacks.StepCounter(epochs=2, steps_per_epoch=3)
    guard = callbacks.LossGuard(counter)
    guard.set_model(keras.Sequential())
    guard.model.steps_per_execution = steps_per_execution
    counter.on_epoch_begin(0)
    counter.on_train_batch_end(1)
    guard.on_train_batch_end(1, {"loss": 1.0})
    with pytest.raises(RunError, match=f"loss=nan after {where}"):
        guard.on_train_batch_end(1, {"loss": float("nan")})
