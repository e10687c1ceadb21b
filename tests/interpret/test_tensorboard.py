"""Attention figures in TensorBoard event files."""

import io

import pytest
import tensorflow as tf
from helpers.processes import command, python
from PIL import Image


def read_images(folder):
    """Returns {tag: [step, ...]} of the images in TensorBoard event files."""
    steps = {}
    for path in sorted(folder.rglob("events*")):
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            event = tf.compat.v1.Event.FromString(record)
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "images":
                    width, height, png = tf.make_ndarray(value.tensor)[:3]
                    assert Image.open(io.BytesIO(png)).size == (int(width), int(height))
                    steps.setdefault(value.tag, []).append(event.step)
    return steps


FIT = """
import sys, keras, numpy as np, tensorflow as tf
from helpers.models import TINY
import vitkeras as vk
from vitkeras.interpret.tensorboard import AttentionPictures
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
images = np.random.default_rng(0).integers(0, 256, (4, 32, 48, 3), np.uint8)
options = {**TINY, "num_layers": 1, "dropout_rate": 0.1}
for replicas in (1, 2):
    strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(replicas)])
    with strategy.scope():
        model = vk.vit("Ti/8", image_size=(32, 48), num_classes=3, **options)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("adam", loss)
        model.optimizer.build(model.trainable_variables)
    state = model.variables + model.optimizer.variables  # with that of the dropout masks
    initial = [v.numpy() for v in state]
    results = []
    for callbacks in ([], [AttentionPictures(images[:1], 2, f"{sys.argv[1]}/{replicas}")]):
        for variable, value in zip(state, initial, strict=True):
            variable.assign(value)
        model.fit(images, np.arange(4) % 3, batch_size=2, epochs=3, verbose=0, shuffle=False,
            callbacks=callbacks)
        results.append([v.numpy() for v in state])
    assert all(np.array_equal(*pair) for pair in zip(*results, strict=True))
    changed = [not np.array_equal(*pair) for pair in zip(initial, results[0], strict=True)]
    print(strategy.num_replicas_in_sync, sum(changed) > len(model.trainable_variables))
"""


@pytest.mark.slow
def test_the_callback_logs_figures_and_does_not_change_training(tmp_path):
    process = python("-c", FIT, tmp_path)
    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == ["1", "True", "2", "True"]
    tags = ["attention distance", "attention rollout, image 1"]
    for replicas in ("1", "2"):
        assert read_images(tmp_path / replicas) == {tag: [1, 2] for tag in tags}


def train(folder, data_dir, variant):
    return command(
        "train", "--config=digits", f"--workdir={folder}", f"--config.data_dir={data_dir}",
        "--config.pictures_every=2", f"--config.variant={variant}", "--smoke",
    )  # fmt: skip


@pytest.mark.slow
def test_a_run_logs_figures_of_its_first_validation_images(data_dir, tmp_path):
    code, _, error = train(tmp_path / "run", data_dir, "Ti/4")
    assert code == 0, error
    tags = ["attention distance", *(f"attention rollout, image {i}" for i in (1, 2, 3, 4))]
    assert read_images(tmp_path / "run/tensorboard/pictures") == {tag: [1] for tag in tags}


def test_a_run_of_a_resnet_has_no_attention_to_log(data_dir, tmp_path):
    code, _, error = train(tmp_path / "run", data_dir, "R50x1")
    assert code == 2 and "`pictures_every`" in error and "variant=R50x1" in error
    assert not (tmp_path / "run").exists()
